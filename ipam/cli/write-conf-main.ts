/** For the test of F-17: writes one file over and over until it is killed. argv: FILE, then texts in turn. */
import { writeConf } from "./write-conf.ts";

const [path = "", ...texts] = process.argv.slice(2);
for (let i = 0; ; i++) {
  writeConf(path, texts[i % texts.length] ?? "", true);
  if (i === 0) process.stdout.write("writing\n");
}
