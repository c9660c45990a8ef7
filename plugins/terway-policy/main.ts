/** NetworkPolicy: a pod's addresses are under its rules before ADD returns. */
import { policyPlugin } from "./commands.ts";

export const { add, del, check, gc, status } = policyPlugin;
