import { notBuiltYet } from "../host/not-built.ts";
import { runMain } from "../host/run-main.ts";

runMain("terway-policy", () => notBuiltYet("terway-policy", "take terway-policy out of the conflist"));
