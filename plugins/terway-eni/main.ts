import { runMain } from "../host/run-main.ts";
import { eniHandlers } from "./commands.ts";

runMain("terway-eni", eniHandlers);
