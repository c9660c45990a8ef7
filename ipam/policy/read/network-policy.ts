/** networking.k8s.io/v1 NetworkPolicy, checked as the API server checks it. */
import { cidrContains, networkOf, tryParseCidr } from "../../../shared/net/cidr.ts";
import type { Peer, Policy, Rule } from "../objects.ts";
import { EVERYTHING } from "../selector.ts";
import { type Field, readAll } from "./check.ts";
import { readSelector } from "./names.ts";
import { readNetworkPolicyPort } from "./ports.ts";

function readCidr(field: Field): string | undefined {
  const text = field.required(field.text());
  if (text === undefined || tryParseCidr(text) !== undefined) return text;
  return field.fault(`"${text}" is no CIDR: want the form 10.0.0.0/24 or 2001:db8::/64`);
}

export const readNetwork = readCidr;

function readBlock(field: Field): Peer | undefined {
  field.map(["cidr", "except"]);
  const cidr = readCidr(field.at("cidr"));
  const outer = cidr === undefined ? undefined : tryParseCidr(cidr);
  const except = field
    .at("except")
    .list()
    .flatMap((entry) => {
      const text = readCidr(entry);
      const inner = text === undefined ? undefined : tryParseCidr(text);
      if (text === undefined || inner === undefined || outer === undefined) return [];
      if (inner.prefixLength <= outer.prefixLength || !cidrContains(outer, networkOf(inner))) {
        entry.fault(`must be a strict subset of cidr: ${text} is not one of ${cidr}`);
        return [];
      }
      return [text];
    });
  return cidr === undefined ? undefined : { kind: "block", cidr, except };
}

function readPeer(field: Field, namespace: string): Peer | undefined {
  if (field.required(field.map(["podSelector", "namespaceSelector", "ipBlock"])) === undefined) return undefined;
  const [pods, namespaces, block] = [field.at("podSelector"), field.at("namespaceSelector"), field.at("ipBlock")];
  if (!block.absent) {
    if (!pods.absent || !namespaces.absent) block.fault("may not specify both ipBlock and another peer");
    return readBlock(block);
  }
  if (pods.absent && namespaces.absent)
    return field.fault("must specify a peer: podSelector, namespaceSelector or ipBlock");
  const selector = readSelector(pods) ?? EVERYTHING;
  const inNamespaces = readSelector(namespaces);
  return inNamespaces === undefined
    ? { kind: "pods", namespace, pods: selector }
    : { kind: "pods", namespaces: inNamespaces, pods: selector };
}

/** Without entries: everybody, every port. */
function readRules(field: Field, direction: "ingress" | "egress", namespace: string, name: string): Rule[] {
  const side = direction === "ingress" ? "from" : "to";
  return field.list().map((entry, i) => {
    entry.required(entry.map([side, "ports"]));
    const peers = readAll(entry.at(side).list(), (peer) => readPeer(peer, namespace));
    const ports = readAll(entry.at("ports").list(), readNetworkPolicyPort);
    return {
      verdict: "accept" as const,
      origin: `NetworkPolicy ${namespace}/${name} ${direction}[${i}]`,
      ...(peers.length > 0 ? { peers } : {}),
      ...(ports.length > 0 ? { ports } : {}),
    };
  });
}

export function readNetworkPolicy(spec: Field, namespace: string, name: string): Policy {
  spec.required(spec.map(["podSelector", "policyTypes", "ingress", "egress"]));
  const pods = readSelector(spec.at("podSelector")) ?? EVERYTHING;
  const types = spec
    .at("policyTypes")
    .list(2)
    .map((type) => type.required(type.oneOf(["Ingress", "Egress"])));
  const ingress = readRules(spec.at("ingress"), "ingress", namespace, name);
  const egress = readRules(spec.at("egress"), "egress", namespace, name);
  // What the API server fills in when policyTypes is absent: Ingress always, Egress when there are egress rules.
  const hasIngress = types.length === 0 || types.includes("Ingress");
  const hasEgress = types.length === 0 ? egress.length > 0 : types.includes("Egress");
  return {
    kind: "NetworkPolicy",
    namespace,
    name,
    tier: "policies",
    priority: 0,
    subject: { kind: "pods", namespace, pods },
    ...(hasIngress ? { ingress } : {}),
    ...(hasEgress ? { egress } : {}),
  };
}
