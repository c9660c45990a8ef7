/** terway-cli: shows and explains what is on this node. */

import { fileURLToPath } from "node:url";
import { execute } from "@oclif/core";

await execute({ dir: fileURLToPath(new URL("../..", import.meta.url)) });
