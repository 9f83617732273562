// One grpc-js channel that stays open. Each line of standard input is one unary call, "PATH BASE64"; each line of standard
// output is its status code. The request id is new with each call, so the header table of the connection changes with
// each as well. A second argument is the authority to trust, in PEM: the channel then speaks TLS.
"use strict";
const grpc = require("@grpc/grpc-js");
const fs = require("fs");
const readline = require("readline");

const [target, ca] = process.argv.slice(2);
const credentials = ca ? grpc.credentials.createSsl(fs.readFileSync(ca)) : grpc.credentials.createInsecure();
const client = new grpc.Client(target, credentials);
const same = (bytes) => bytes;
let number = 0;

function call(line) {
  const [path, body] = line.split(" ");
  const metadata = new grpc.Metadata();
  metadata.set("x-request-id", `call-${number++}`);
  metadata.set("x-tenant", `tenant-${number % 7}`);
  return new Promise((resolve) => {
    client.makeUnaryRequest(path, same, same, Buffer.from(body, "base64"), metadata, (error) => {
      resolve(error ? error.code : 0);
    });
  });
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(await call(line));
  }
  client.close();
})();
