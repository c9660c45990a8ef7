import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { loadOrder, moduleName, parametersOf, parseModulesDep } from "./modules.ts";

const DEP = `kernel/net/8021q/8021q.ko: kernel/net/802/garp.ko kernel/net/802/stp.ko kernel/net/802/mrp.ko kernel/net/llc/llc.ko
kernel/net/802/garp.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko
kernel/net/802/mrp.ko:
kernel/net/802/stp.ko: kernel/net/llc/llc.ko
kernel/net/llc/llc.ko:
kernel/net/netfilter/xt_MASQUERADE.ko.xz:
`;

describe("order of kernel modules", () => {
  const deps = parseModulesDep(DEP);

  it("loads what 8021q needs first", () => {
    expect(loadOrder(deps, [], ["8021q"]).map(moduleName)).toEqual(["llc", "stp", "garp", "mrp", "8021q"]);
  });

  it("loads each module once, whatever was asked for in which order", () => {
    const names = [...deps.keys()].map(moduleName);
    fc.assert(
      fc.property(fc.shuffledSubarray(names), (wanted) => {
        const order = loadOrder(deps, [], wanted);
        expect(new Set(order).size).toBe(order.length);
        for (const [i, path] of order.entries())
          for (const needed of deps.get(path) ?? []) expect(order.slice(0, i)).toContain(needed);
        for (const name of wanted) expect(order.map(moduleName)).toContain(name);
      }),
    );
  });

  it("leaves out what the kernel has built in, and takes - for _", () => {
    expect(loadOrder(deps, ["kernel/net/ipv6/ipv6.ko", "kernel/x/a-b.ko"], ["ipv6", "a_b", "llc"])).toEqual([
      "kernel/net/llc/llc.ko",
    ]);
  });

  it("names a module that does not exist", () => {
    expect(() => loadOrder(deps, [], ["llc", "ipvlam"])).toThrow("no module ipvlam");
  });

  it("names modules that need each other", () => {
    expect(() => loadOrder(parseModulesDep("a.ko: b.ko\nb.ko: a.ko\n"), [], ["a"])).toThrow("a → b → a");
  });

  it("gives ifb no links of its own", () => {
    expect(parametersOf("kernel/drivers/net/ifb.ko")).toEqual(["numifbs=0"]);
    expect(parametersOf("kernel/drivers/net/veth.ko")).toEqual([]);
  });
});
