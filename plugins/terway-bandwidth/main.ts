/** Bandwidth: what a pod sends and receives is held to its limits before ADD returns. */
import { bandwidthPlugin } from "./commands.ts";

export const { add, del, check, gc, status } = bandwidthPlugin;
