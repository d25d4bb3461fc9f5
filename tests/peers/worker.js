// proper-lockfile, played as worker.py plays the Python libraries: the main
// thread makes the system calls (lockSync is the same code as lock).
'use strict';
const fs = require('fs');
const os = require('os');
const path = require('path');
const lockfile = require(path.join(process.argv[2], 'node_modules', 'proper-lockfile'));

const lostIsNoCrash = { realpath: false, onCompromised: () => {} };
const pause = new Int32Array(new SharedArrayBuffer(4));

function acquire(file) {
  for (;;) {
    try {
      return lockfile.lockSync(file, lostIsNoCrash);
    } catch (error) {
      if (error.code !== 'ELOCKED') throw error;
      Atomics.wait(pause, 0, 0, 20);
    }
  }
}

const elsewhere = fs.mkdtempSync(path.join(os.tmpdir(), 'peer-'));
acquire(path.join(elsewhere, 'warm'))();
fs.rmdirSync(elsewhere);

let release;
function obey(line) {
  if (line === 'acquire') {
    release = acquire(process.argv[3]);
    fs.writeSync(1, 'inside\n');
  } else if (line === 'release') {
    try {
      release();
    } catch (error) {
      if (error.code !== 'ENOTACQUIRED') throw error;
    }
    fs.writeSync(1, 'out\n');
  }
}
fs.writeSync(1, 'ready\n');
require('readline').createInterface({ input: process.stdin }).on('line', obey).on('close', () => process.exit());
