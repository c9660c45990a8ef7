import { notBuiltYet } from "../host/not-built.ts";

export const { add, del, check, gc, status } = notBuiltYet("terway-trunk", "use terway-eni in mode shared");
