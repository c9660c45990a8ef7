import { defineConfig } from "vitest/config";
import { patient } from "./kernel/patience.ts";

export default defineConfig({
  root: new URL("..", import.meta.url).pathname,
  test: {
    include: ["{plugins,ipam,shared,test}/**/*.test.ts"],
    pool: "forks", // threads share a process: setns, environment and exit status would leak between tests
    // End-to-end tests wait more than they compute; by default one of two processors would idle.
    maxWorkers: 2,
    testTimeout: patient(30_000),
    hookTimeout: patient(60_000),
  },
});
