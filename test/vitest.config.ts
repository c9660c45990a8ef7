import { defineConfig } from "vitest/config";

export default defineConfig({
  root: new URL("..", import.meta.url).pathname,
  test: {
    include: ["{plugins,ipam,shared,test}/**/*.test.ts"],
    pool: "forks", // threads share a process: setns, environment and exit status would leak between tests
    testTimeout: 30_000,
    hookTimeout: 60_000,
  },
});
