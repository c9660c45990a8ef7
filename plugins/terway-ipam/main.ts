export { add, check, del, gc, status } from "./commands.ts";
