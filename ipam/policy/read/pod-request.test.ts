import { describe, expect, it } from "vitest";
import { readManifestText } from "../manifest-text.ts";
import type { Pod, PodNetworking } from "../objects.ts";

const pod = (annotations: Record<string, string>, resources = "") =>
  `apiVersion: v1
kind: Pod
metadata:
  name: a
  uid: u-1
  annotations: ${JSON.stringify(annotations)}
spec: { containers: [{ name: c${resources === "" ? "" : `, resources: { limits: { aliyun/eni: ${resources} } }`} }] }
`;
const read = (text: string) => {
  const { objects, findings, faulty } = readManifestText(text);
  return { object: objects[0]?.object, said: findings.map((f) => `${f.line} ${f.path}: ${f.message}`), faulty };
};
const requestOf = (text: string) => (read(text).object as Pod).request;
const refs = (value: unknown) => pod({ "k8s.aliyun.com/pod-networks-request": JSON.stringify(value) });

describe("what a Pod asks for", () => {
  it("is nothing, an ENI of its own, or groups", () => {
    expect(read(pod({ other: "x" })).object).toMatchObject({ uid: "u-1", kind: "Pod" });
    expect(requestOf(pod({ other: "x" }))).toBeUndefined();
    expect(requestOf(pod({ "k8s.aliyun.com/eni": "false" }))).toBeUndefined();
    expect(requestOf(pod({ "k8s.aliyun.com/eni": "true" }))).toEqual({ ownEni: true });
    expect([requestOf(pod({}, "1")), requestOf(pod({}, '"1"')), requestOf(pod({}, "0"))]).toEqual([
      { ownEni: true },
      { ownEni: true },
      undefined,
    ]);
    expect(requestOf(pod({ "k8s.aliyun.com/security-group": "sg-1" }))).toEqual({ securityGroups: ["sg-1"] });
    expect(requestOf(pod({ "k8s.aliyun.com/security-groups": "sg-2, sg-1,sg-2" }))).toEqual({
      securityGroups: ["sg-1", "sg-2"],
    });
  });

  it("is refused with its path, and the Pod stands", () => {
    const cases: [string, string][] = [
      [pod({ "k8s.aliyun.com/eni": "yes" }), 'metadata.annotations[k8s.aliyun.com/eni]: must be "true" or "false"'],
      [pod({}, "2"), "spec.containers[0].resources.limits[aliyun/eni]: must be 0 or 1, is 2"],
      [pod({ "k8s.aliyun.com/security-group": "sg-1,sg-2" }), "security-group]: must name at most 1 security group"],
      [pod({ "k8s.aliyun.com/security-groups": "sg 1" }), '"sg 1" is no identifier'],
      [pod({ "kubernetes.io/ingress-bandwidth": "fast" }), "metadata.annotations[kubernetes.io/ingress-bandwidth]: "],
      [pod({ "k8s.aliyun.com/pod-networks-request": "{" }), "pod-networks-request]: is no JSON"],
      [refs([{ interfaceName: "eth0" }]), "pod-networks-request]: [0].network: is required"],
      [refs([{ interfaceName: "veth1", network: "n" }]), '[0].interfaceName: "veth1" cannot be an interface'],
      [
        refs([
          { interfaceName: "eth0", network: "n" },
          { interfaceName: "eth0", network: "m" },
        ]),
        "[1].interfaceName: eth0 is named twice",
      ],
      [refs([{ interfaceName: "eth1", network: "n", routes: [{ dst: "10/8" }] }]), "[0].routes[0].dst: "],
    ];
    for (const [text, want] of cases) {
      const { object, said, faulty } = read(text);
      expect(said.join()).toContain(want);
      expect([object?.kind, faulty]).toEqual(["Pod", []]);
    }
    const both = ["eth0", "eth1"].map((interfaceName) => ({ interfaceName, network: "n", defaultRoute: true }));
    expect(requestOf(refs(both))?.faults).toContain("not eth0 and eth1");
  });

  it("is a list of interfaces", () => {
    const routes = [{ dst: "10.1.2.3/8" }];
    expect(requestOf(refs([{ interfaceName: "eth1", network: "storage", defaultRoute: true, routes }]))).toEqual({
      networks: [{ ifname: "eth1", network: "storage", defaultRoute: true, routes: ["10.0.0.0/8"] }],
    });
  });
});

describe("a PodNetworking", () => {
  const networking = (spec: string, status = "{}") =>
    `{ apiVersion: network.alibabacloud.com/v1beta1, kind: PodNetworking, metadata: { name: n }, spec: ${spec}, status: ${status} }`;

  it("says type, vSwitches, groups and whom it selects", () => {
    const { object, said } = read(
      networking(
        "{ allocationType: { type: Elastic }, selector: { podSelector: { matchLabels: { app: x } } }, securityGroupIDs: [sg-2, sg-1], vSwitchOptions: [vsw-a, vsw-b], eniOptions: { eniType: Trunk } }",
        "{ vSwitches: [{ id: vsw-a, zone: z1 }] }",
      ),
    );
    expect(said).toEqual([]);
    expect(object).toEqual({
      kind: "PodNetworking",
      name: "n",
      eniType: "Trunk",
      vswitches: [{ id: "vsw-a", zone: "z1" }, { id: "vsw-b" }],
      securityGroups: ["sg-1", "sg-2"],
      pods: { requirements: [{ key: "app", operator: "In", values: ["x"] }] },
    } satisfies PodNetworking);
  });

  it("with a fault does not count, and is not forgotten", () => {
    const { object, said, faulty } = read(networking("{ securityGroupIDs: [7], allocationType: { type: Fixed } }"));
    expect(object).toBeUndefined();
    expect(faulty).toEqual(["PodNetworking/n"]);
    expect(said.join()).toMatch(/spec.securityGroupIDs\[0\]: must be a string.*|Fixed is not supported/);
  });
});
