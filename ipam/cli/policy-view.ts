/** What the policy commands share: manifests of a folder, and who an address or a pod's name is. */
import { setTimeout as sleep } from "node:timers/promises";
import { formatIp, tryParseIp } from "../../shared/net/ip.ts";
import type { CompiledPolicy } from "../../shared/policy/compiled.ts";
import type { FlowEnd } from "../../shared/policy/evaluate.ts";
import { type AttachedPod, PolicyCompiler } from "../policy/compiler.ts";
import { attachedPods } from "../policy/enforcer.ts";
import { errorsOf, type FileFinding, PolicyFolder } from "../policy/source-dir.ts";
import type { Store } from "../store/open.ts";
import { getCompiled, isPolicyOff } from "../store/policy.ts";

export interface ReadFolder {
  readonly events: ReturnType<PolicyFolder["refresh"]>["events"];
  readonly findings: readonly FileFinding[];
  readonly errors: readonly FileFinding[];
}

const LOOK_AGAIN_MS = 50;
const WAIT_MS = 10_000;

/** Everything that a folder says, read once, when no file in it is being changed. @throws when it never is like that. */
export async function readFolder(dir: string): Promise<ReadFolder> {
  const folder = new PolicyFolder(dir);
  const events: ReadFolder["events"][number][] = [];
  const until = performance.now() + WAIT_MS;
  for (;;) {
    const refresh = folder.refresh();
    for (const event of refresh.events) events.push(event);
    if (!refresh.unsettled) return { events, findings: refresh.findings, errors: errorsOf(refresh.findings) };
    if (performance.now() > until) throw new Error("its files do not stop changing");
    await sleep(LOOK_AGAIN_MS);
  }
}

/** Policies and the pods by which ends of flows are known. */
export interface PolicyWorld {
  readonly compiled: CompiledPolicy;
  /** NetworkPolicy is switched off on this node: nothing of it is in force. */
  readonly off: boolean;
  readonly pods: readonly AttachedPod[];
  /** Pods of other nodes are judged too. */
  readonly everyNode: boolean;
}

/** As the folder has it, for pods of every node: a look ahead too, before anything is synced. */
export function worldOfFolder(events: ReadFolder["events"], attached: readonly AttachedPod[]) {
  const compiler = new PolicyCompiler({ everyNode: true });
  compiler.setAttached(attached);
  compiler.apply(events);
  const compiled = compiler.compile();
  const known = [...compiler.objects.values()].flatMap((o): AttachedPod[] =>
    o.kind === "Pod" && !o.finished
      ? [
          {
            namespace: o.namespace,
            name: o.name,
            addresses: o.hostNetwork ? [] : compiler.addressesOf(o.namespace, o.name),
          },
        ]
      : [],
  );
  const names = new Set(known.map((p) => `${p.namespace}/${p.name}`));
  const pods = [...known, ...attached.filter((p) => !names.has(`${p.namespace}/${p.name}`))];
  return { compiled, off: false, pods, everyNode: true } satisfies PolicyWorld;
}

const NONE: CompiledPolicy = { revision: 0, sets: [], endpointSets: [], profiles: [], pods: [] };

/** As it is in force on this node. @returns undefined: none was ever compiled, and NetworkPolicy is not off. */
export function worldOfStore(store: Store): PolicyWorld | undefined {
  const off = isPolicyOff(store.db);
  const compiled = getCompiled(store.db) ?? (off ? NONE : undefined);
  return compiled && { compiled, off, pods: attachedPods(store), everyNode: false };
}

const familyOf = (address: string) => (address.includes(":") ? 6 : 4);

/** "NAMESPACE/NAME", "NAME" of the namespace `default`, or an address. @throws {Error} that says what is not known. */
export function endsOf(text: string, pods: readonly AttachedPod[]): FlowEnd[] {
  const ip = tryParseIp(text);
  if (ip !== undefined) {
    const address = formatIp(ip);
    const pod = pods.find((p) => p.addresses.includes(address));
    return [{ address, ...(pod === undefined ? {} : { pod: { namespace: pod.namespace, name: pod.name } }) }];
  }
  const [namespace, name] = text.includes("/") ? text.split("/", 2) : ["default", text];
  const pod = pods.find((p) => p.namespace === namespace && p.name === name);
  if (pod === undefined) {
    const like = pods.filter((p) => p.name === name).map((p) => `${p.namespace}/${p.name}`);
    throw new Error(
      `no pod ${namespace}/${name} is known here${like.length > 0 ? `; there is ${like.join(", ")}` : ""}`,
    );
  }
  if (pod.addresses.length === 0) throw new Error(`pod ${namespace}/${name} has no address of its own (yet)`);
  return pod.addresses.map((address) => ({ address, pod: { namespace: pod.namespace, name: pod.name } }));
}

/** One pair for each family that both have. */
export function pairsOf(from: readonly FlowEnd[], to: readonly FlowEnd[]): { from: FlowEnd; to: FlowEnd }[] {
  return ([4, 6] as const).flatMap((family) => {
    const a = from.find((end) => familyOf(end.address) === family);
    const b = to.find((end) => familyOf(end.address) === family);
    return a === undefined || b === undefined ? [] : [{ from: a, to: b }];
  });
}
