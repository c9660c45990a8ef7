import { createRequire } from "node:module";
import { describe, expect, it } from "vitest";
import { requireWithLazyModels } from "./lazy-models.ts";

const require = createRequire(import.meta.url);
const loaded = (name: string) => Object.keys(require.cache).filter((f) => f.includes(`${name}/dist/models/`)).length;

describe.each(["@alicloud/ecs20140526", "@alicloud/vpc20160428"])("%s", (name) => {
  it("has every model, and loads those that are used", () => {
    const sdk = requireWithLazyModels(name) as Record<string, new (fields: object) => Record<string, unknown>>;
    expect(loaded(name)).toBeLessThan(10);
    const requests = Object.keys(sdk).filter((member) => member.endsWith("Request"));
    expect(requests.length).toBeGreaterThan(300);
    const Request = sdk.DescribeVSwitchesRequest;
    if (Request === undefined) throw new Error("no such model");
    expect(new Request({ vSwitchId: "vsw-1" }).vSwitchId).toBe("vsw-1");
    expect(sdk.DescribeVSwitchesRequest).toBe(Request);
    // The client's own view of the models is the same.
    expect(Object.keys(Object.getOwnPropertyDescriptors(sdk.default?.prototype)).length).toBeGreaterThan(300);
    expect(loaded(name)).toBeLessThan(30);
  });
});
