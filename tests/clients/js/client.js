// One grpc-js channel that stays open. Each line of standard input is one unary call, "PATH BASE64"; each line of standard
// output is its status code. The request id is new with each call, so the header table of the connection changes with
// each as well.
"use strict";
const grpc = require("@grpc/grpc-js");
const readline = require("readline");

const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());
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
