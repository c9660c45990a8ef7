/** The policies that we ship, read as they are and judged by what they promise. */
import { globSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { createEvaluator, type Flow } from "../../shared/policy/evaluate.ts";
import { PolicyCompiler } from "./compiler.ts";
import { readManifestText } from "./manifest-text.ts";

const dir = fileURLToPath(new URL("../../deploy/policies/", import.meta.url));
const files = globSync("*.yaml", { cwd: dir }).sort();

const POD = (ns: string, name: string, ip: string, labels: string) =>
  `---\n{ kind: Pod, apiVersion: v1, metadata: { name: ${name}, namespace: ${ns}, labels: { ${labels} } }, status: { podIP: ${ip} } }\n`;
const PODS: Readonly<Record<string, readonly [ns: string, ip: string, labels: string]>> = {
  web: ["production", "10.0.0.1", 'app: web, app.kubernetes.io/expose: "true"'],
  api: ["production", "10.0.0.2", "app: api"],
  mysql: ["production", "10.0.0.3", "app: mysql"],
  dns: ["kube-system", "10.0.0.4", "k8s-app: kube-dns"],
  nginx: ["ingress-nginx", "10.0.0.5", "app: nginx"],
  prometheus: ["monitoring", "10.0.0.6", "app: prometheus"],
  stranger: ["other", "10.0.0.7", "app: web"],
};

function judge(file: string) {
  const text =
    readFileSync(`${dir}${file}`, "utf8") +
    ["ingress-nginx", "monitoring"]
      .map((n) => `---\n{ kind: Namespace, apiVersion: v1, metadata: { name: ${n}, labels: { name: ${n} } } }\n`)
      .join("") +
    Object.entries(PODS)
      .map(([name, [ns, ip, labels]]) => POD(ns, name, ip, labels))
      .join("");
  const { objects, findings } = readManifestText(text);
  expect(findings).toEqual([]);
  const compiler = new PolicyCompiler({ everyNode: true });
  compiler.apply(objects.map(({ object }) => ({ type: "set", object })));
  const evaluator = createEvaluator(compiler.compile());
  const end = (who: string): Flow["from"] => {
    const pod = PODS[who];
    return pod === undefined ? { address: who } : { address: pod[1], pod: { namespace: pod[0], name: who } };
  };
  return (from: string, to: string, protocol: "tcp" | "udp", port: number) =>
    evaluator.judge({ from: end(from), to: end(to), protocol, port }).allowed;
}

describe("shipped policies", () => {
  it("are all tried here", () =>
    expect(files).toEqual([
      "basic-isolation.yaml",
      "enterprise-baseline.yaml",
      "fine-grained-access.yaml",
      "namespace-hardening.yaml",
    ]));

  it.each(files)("%s keeps strangers out and lets names be looked up", (file) => {
    const allows = judge(file);
    expect(allows("stranger", "web", "tcp", 8080)).toBe(false);
    expect(allows("web", "stranger", "tcp", 8080)).toBe(false);
    expect(allows("api", "dns", "udp", 53)).toBe(true);
    expect(allows("api", "dns", "udp", 54)).toBe(false);
  });

  it.each([
    ["basic-isolation.yaml", "api", "mysql", "tcp", 3306, true],
    ["basic-isolation.yaml", "nginx", "web", "tcp", 8080, false],
    ["fine-grained-access.yaml", "nginx", "web", "tcp", 8080, true],
    ["fine-grained-access.yaml", "web", "api", "tcp", 8080, true],
    ["fine-grained-access.yaml", "web", "mysql", "tcp", 3306, false],
    ["fine-grained-access.yaml", "api", "mysql", "tcp", 3306, true],
    ["fine-grained-access.yaml", "mysql", "api", "tcp", 8080, false],
    ["namespace-hardening.yaml", "nginx", "web", "tcp", 80, true],
    ["namespace-hardening.yaml", "nginx", "api", "tcp", 80, false],
    ["namespace-hardening.yaml", "prometheus", "mysql", "tcp", 9090, true],
    ["namespace-hardening.yaml", "prometheus", "mysql", "tcp", 9091, false],
    ["enterprise-baseline.yaml", "nginx", "web", "tcp", 80, true],
    ["enterprise-baseline.yaml", "web", "100.100.2.136", "udp", 123, true],
    ["enterprise-baseline.yaml", "web", "8.8.8.8", "tcp", 443, true],
    ["enterprise-baseline.yaml", "web", "8.8.8.8", "tcp", 80, false],
    ["enterprise-baseline.yaml", "web", "172.20.0.1", "tcp", 443, false],
  ] as const)("%s: %s → %s %s %i is %s", (file, from, to, protocol, port, allowed) =>
    expect(judge(file)(from, to, protocol, port)).toBe(allowed),
  );
});
