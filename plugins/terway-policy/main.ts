import { notBuiltYet } from "../host/not-built.ts";

export const { add, del, check, gc, status } = notBuiltYet("terway-policy", "take terway-policy out of the conflist");
