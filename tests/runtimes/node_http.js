// Node's own HTTP server: node_http.js PORT.
const http = require('http');
const secret = require('crypto').randomBytes(8).toString('hex');
let count = 0;

http.createServer((request, response) => {
  count += 1;
  let work = 0;
  for (let i = 0; i < 1000; i++) work += i * i;
  response.setHeader('Connection', 'close');
  response.end(`${secret} ${count} ${work}`);
}).listen(Number(process.argv[2]), '0.0.0.0');
