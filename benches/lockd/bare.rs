//! A server that reads requests and answers each with the same words: what the
//! sockets, the clients and this machine take of a call's time.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const BODY: &str = "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n\
    <value><nil/></value></param>\n</params>\n</methodResponse>\n";

/// Until killed.
pub(crate) async fn serve() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = TcpListener::bind(any).await.expect("a port");
    println!("{}", listener.local_addr().expect("its address").port());
    loop {
        let (stream, _) = listener.accept().await.expect("a client");
        stream.set_nodelay(true).expect("a setting");
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length";
    let answer = format!("{head}: {}\r\n\r\n{BODY}", BODY.len());
    let mut bytes = [0; 4096];
    // A client writes a request at once, and waits.
    while let Ok(1..) = stream.read(&mut bytes).await {
        stream.write_all(answer.as_bytes()).await.expect("it listens");
    }
}
