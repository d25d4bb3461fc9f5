//! One member of etcd, as a process of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A member that does not listen by then will not.
const START_MAX: Duration = Duration::from_secs(20);

pub(crate) struct Member {
    child: Child,
    pub(crate) address: SocketAddr,
    _home: TempDir,
}

impl Member {
    /// With its data below this directory.
    pub(crate) fn start(base: &Path) -> Self {
        let home = TempDir::new_in(base).expect("a directory");
        let [address, peer] = free_addresses();
        let data = home.path().join("data");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data).args(["--name", "one", "--logger", "zap"]);
        for (flags, address) in [
            (["--listen-client-urls", "--advertise-client-urls"], address),
            (["--listen-peer-urls", "--initial-advertise-peer-urls"], peer),
        ] {
            for flag in flags {
                command.arg(flag).arg(format!("http://{address}"));
            }
        }
        command.arg("--initial-cluster").arg(format!("one=http://{peer}"));
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("etcd: apt-get install etcd-server");
        let member = Self { child, address, _home: home };
        let begun = Instant::now();
        while member.get("/health").is_none_or(|answer| !answer.contains("\"true\"")) {
            assert!(begun.elapsed() < START_MAX, "etcd does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        member
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many requests it answered, and how many messages it took over streams.
    pub(crate) fn requests(&self) -> u64 {
        let metrics = self.get("/metrics").expect("its metrics");
        let counts = metrics.lines().filter(|line| {
            line.starts_with("grpc_server_handled_total")
                || line.starts_with("grpc_server_msg_received_total")
                    && line.contains("grpc_type=\"bidi_stream\"")
        });
        let numbers = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        numbers.sum::<f64>() as u64
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("its address"))
}
