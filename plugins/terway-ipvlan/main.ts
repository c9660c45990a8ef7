import { notBuiltYet } from "../host/not-built.ts";
import { runMain } from "../host/run-main.ts";

runMain("terway-ipvlan", () => notBuiltYet("terway-ipvlan", "use terway-eni in mode shared"));
