import { notBuiltYet } from "../host/not-built.ts";
import { runMain } from "../host/run-main.ts";

runMain("terway-bandwidth", () =>
  notBuiltYet("terway-bandwidth", "take terway-bandwidth out of the conflist, or use the bandwidth plugin"),
);
