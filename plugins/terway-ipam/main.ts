import { runMain } from "../host/run-main.ts";
import { ipamHandlers } from "./commands.ts";

runMain("terway-ipam", ipamHandlers);
