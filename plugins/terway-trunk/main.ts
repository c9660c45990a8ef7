import { notBuiltYet } from "../host/not-built.ts";
import { runMain } from "../host/run-main.ts";

runMain("terway-trunk", () => notBuiltYet("terway-trunk", "use terway-eni in mode shared"));
