// Node's `xmlrpc` from npm against the daemon: directory of the package and
// port of the daemon as arguments.
'use strict';

const assert = require('assert');
const path = require('path');
const xmlrpc = require(path.join(process.argv[2], 'node_modules', 'xmlrpc'));

const client = xmlrpc.createClient({ host: '127.0.0.1', port: Number(process.argv[3]), path: '/RPC2' });

const call = (method, ...params) =>
  new Promise((resolve, reject) =>
    client.methodCall(method, params, (error, value) => (error ? reject(error) : resolve(value))));

const fault = (method, ...params) =>
  call(method, ...params).then(
    () => assert.fail('no fault'),
    (error) => {
      assert.strictEqual(error.faultCode, 1, String(error));
      return error.faultString;
    });

async function main() {
  assert.strictEqual(await call('lock', 'resource1', 'client1'), null);
  assert.strictEqual(await fault('lock', 'resource1', 'client2'),
    "<class 'Exception'>:Resource already locked by 'client1'");
  assert.strictEqual(await fault('unlock', 'resource1', 'client2'),
    "<class 'Exception'>:Resource locked by 'client1' cannot be unlocked by 'client2'");
  assert.strictEqual(await call('unlock', 'resource1', 'client1'), null);
  assert.strictEqual(await fault('unlock', 'resource1', 'client1'),
    "<class 'Exception'>:Resource not locked");

  // It writes a text with special characters as CDATA.
  assert.strictEqual(await call('lock', 'a<b>&c', "o'neil & <sons> 日本"), null);
  assert.strictEqual(await fault('lock', 'a<b>&c', 'x'),
    '<class \'Exception\'>:Resource already locked by "o\'neil & <sons> 日本"');
  assert.strictEqual(await call('unlock', 'a<b>&c', "o'neil & <sons> 日本"), null);

  assert.match(await fault('lock', 'r', 5), /must be a string/);
  assert.match(await fault('lock', 'r', new Date()), /must be a string/);
  assert.match(await fault('lock', 'r', Buffer.from('x')), /must be a string/);
  assert.match(await fault('lock', { resource: 'r', client: 'c' }), /2 arguments/);
  assert.deepStrictEqual(await call('system.listMethods'),
    ['lock', 'system.listMethods', 'system.methodHelp', 'system.methodSignature', 'unlock']);
  assert.strictEqual(await fault('frobnicate'),
    '<class \'Exception\'>:method "frobnicate" is not supported');

  const all = await Promise.all(Array.from({ length: 32 }, (_, number) =>
    call('lock', 'once', String(number)).then(() => number, () => null)));
  const won = all.filter((number) => number !== null);
  assert.strictEqual(won.length, 1);
  await call('unlock', 'once', String(won[0]));
  console.log('all passed');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
