import { notBuiltYet } from "../host/not-built.ts";

export const { add, del, check, gc, status } = notBuiltYet("terway-ipvlan", "use terway-eni in mode shared");
