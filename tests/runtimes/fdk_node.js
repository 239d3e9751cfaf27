// A function of the Fn project under its kit for Node.
const fdk = require('@fnproject/fdk');
const secret = require('crypto').randomBytes(8).toString('hex');
let count = 0;

fdk.handle(() => {
  count += 1;
  let work = 0;
  for (let i = 0; i < 1000; i++) work += i * i;
  return `${secret} ${count} ${work}`;
});
