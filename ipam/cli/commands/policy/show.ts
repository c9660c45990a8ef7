import { Args } from "@oclif/core";
import { openNft } from "../../../../shared/netlink/nft/socket.ts";
import { profileChain } from "../../../../shared/policy/names.ts";
import { readCounters } from "../../../../shared/policy/program.ts";
import { nodeSys } from "../../../../shared/sys/node.ts";
import {
  type Count,
  type DirectionShown,
  formatDirection,
  POLICY_OFF,
  podOf,
  showDirection,
} from "../../../policy/explain.ts";
import { BaseCommand } from "../../base-command.ts";
import { endsOf, type PolicyWorld, worldOfStore } from "../../policy-view.ts";

interface PodShown {
  /** On this node: the rules are not in force. */
  readonly policyOff: boolean;
  readonly pod: string;
  readonly addresses: readonly string[];
  readonly revision: number;
  readonly ingress: DirectionShown;
  readonly egress: DirectionShown;
}

/** nftables cuts comments; so are origins compared. */
const COMMENT_CHARACTERS = 100;

/** Counters need root; without them the rules are shown all the same. */
function readCount(): Count {
  try {
    const nft = openNft(nodeSys);
    try {
      const counters = readCounters(nft);
      return (profile, origin) => {
        const chains = [false, true].map((second) => profileChain(profile.direction, profile.id, second));
        const of = counters.filter(
          (c) =>
            chains.includes(c.chain) &&
            c.origin !== "" &&
            origin.slice(0, COMMENT_CHARACTERS).startsWith(c.origin.slice(0, COMMENT_CHARACTERS)),
        );
        if (of.length === 0) return undefined;
        return { packets: of.reduce((n, c) => n + c.packets, 0), bytes: of.reduce((n, c) => n + c.bytes, 0) };
      };
    } finally {
      nft.close();
    }
  } catch {
    return () => undefined;
  }
}

export default class PolicyShow extends BaseCommand {
  static override description =
    "Show the rules that are in force for a pod of this node, in words, with their counters.";
  static override examples = ["<%= config.bin %> policy show production/db-0"];
  static override args = { pod: Args.string({ required: true, description: "NAMESPACE/NAME, or an address of it" }) };

  async run(): Promise<PodShown> {
    const { args, flags } = await this.parse(PolicyShow);
    return this.withStore(flags.store, (store) => {
      const world = worldOfStore(store);
      if (world === undefined)
        this.error("no policy was ever compiled on this node", {
          exit: 1,
          suggestions: ["run `terway-cli policy sync DIR`, or the agent with --policy-dir"],
        });
      return this.#show(world, args.pod);
    });
  }

  #show(world: PolicyWorld, text: string): PodShown {
    if (world.off) this.log(`${POLICY_OFF}: nothing of this is in force`);
    const known = world.compiled.pods.map((p) => ({ ...p, addresses: [] as string[] }));
    const named = known.find((p) => `${p.namespace}/${p.name}` === text);
    let pod: { readonly namespace: string; readonly name: string } | undefined = named;
    if (pod === undefined) {
      try {
        pod = endsOf(text, world.pods)[0]?.pod;
      } catch (error) {
        this.error((error as Error).message, { exit: 1 });
      }
    }
    const policy = pod && podOf(world.compiled, pod);
    if (pod === undefined || policy === undefined)
      this.error(`no policy is known for ${text}: its Pod object was not among the manifests`, {
        exit: 1,
        suggestions: world.off ? [] : ["the posture of the conflist (terway-policy, key default) holds for it"],
      });
    const count = readCount();
    const shown: PodShown = {
      policyOff: world.off,
      pod: `${pod.namespace}/${pod.name}`,
      addresses: world.pods.find((p) => p.namespace === pod.namespace && p.name === pod.name)?.addresses ?? [],
      revision: world.compiled.revision,
      ingress: showDirection(world.compiled, policy, "ingress", count),
      egress: showDirection(world.compiled, policy, "egress", count),
    };
    this.log(`${shown.pod}  ${shown.addresses.join(", ") || "not attached"}  (revision ${shown.revision})`);
    this.log([...formatDirection(shown.ingress), ...formatDirection(shown.egress)].join("\n"));
    return shown;
  }
}
