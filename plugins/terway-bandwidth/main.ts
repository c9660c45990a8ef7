import { notBuiltYet } from "../host/not-built.ts";

export const { add, del, check, gc, status } = notBuiltYet(
  "terway-bandwidth",
  "take terway-bandwidth out of the conflist, or use the bandwidth plugin",
);
