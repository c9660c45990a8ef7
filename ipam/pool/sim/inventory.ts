/** A simulated node's store: its ENIs and addresses, and who holds them. */
import type { PoolEni } from "../state.ts";

interface Address {
  readonly address: string;
  pod: string | undefined;
  coolUntilMs: number;
  sinceMs: number;
  releasing: boolean;
}

interface Eni {
  readonly id: string;
  readonly vswitchId: string;
  state: PoolEni["state"];
  unassignedAtMs: number | undefined;
  readonly addresses: Map<string, Address>;
}

const COOL_DOWN_MS = 30_000;

export type Inventory = ReturnType<typeof createInventory>;

export function createInventory() {
  const enis = new Map<string, Eni>();
  const held = new Map<string, Address>();

  return {
    enis,
    held,

    addEni(id: string, vswitchId: string, state: PoolEni["state"], addresses: readonly string[], nowMs: number): void {
      const eni: Eni = { id, vswitchId, state, unassignedAtMs: undefined, addresses: new Map() };
      enis.set(id, eni);
      this.addAddresses(id, addresses, nowMs);
    },

    addAddresses(eniId: string, addresses: readonly string[], nowMs: number): void {
      for (const address of addresses)
        enis
          .get(eniId)
          ?.addresses.set(address, { address, pod: undefined, coolUntilMs: 0, sinceMs: nowMs, releasing: false });
    },

    /** Hands out the address that has been free the longest, from the ENI with most pods. */
    take(pod: string, nowMs: number): boolean {
      let best: { address: Address; pods: number } | undefined;
      for (const eni of enis.values()) {
        if (eni.state !== "ready") continue;
        let pods = 0;
        let free: Address | undefined;
        for (const a of eni.addresses.values()) {
          if (a.pod !== undefined) pods += 1;
          else if (!a.releasing && a.coolUntilMs <= nowMs && (free === undefined || a.sinceMs < free.sinceMs)) free = a;
        }
        if (free !== undefined && (best === undefined || pods > best.pods)) best = { address: free, pods };
      }
      if (best === undefined) return false;
      best.address.pod = pod;
      held.set(pod, best.address);
      return true;
    },

    free(pod: string, nowMs: number): void {
      const address = held.get(pod);
      held.delete(pod);
      if (address === undefined) return;
      address.pod = undefined;
      address.sinceMs = nowMs;
      address.coolUntilMs = nowMs + COOL_DOWN_MS;
    },

    /** Marks those that are idle; a pod may have been faster (F-53). */
    markReleasing(eniId: string, addresses: readonly string[], nowMs: number): string[] {
      const own = enis.get(eniId)?.addresses;
      return addresses.filter((address) => {
        const a = own?.get(address);
        if (a === undefined || a.pod !== undefined || a.coolUntilMs > nowMs) return false;
        a.releasing = true;
        return true;
      });
    },

    view(nowMs: number): PoolEni[] {
      return [...enis.values()].map((eni) => {
        const present = [...eni.addresses.values()].filter((a) => !a.releasing);
        const idle = present
          .filter((a) => a.pod === undefined && a.coolUntilMs <= nowMs)
          .sort((a, b) => a.sinceMs - b.sinceMs);
        const cooling = present.filter((a) => a.pod === undefined && a.coolUntilMs > nowMs);
        return {
          id: eni.id,
          state: eni.state,
          vswitchId: eni.vswitchId,
          total: present.length,
          allocated: present.length - idle.length - cooling.length,
          reserved: 0,
          idle: idle.map((a) => a.address),
          cooling: cooling.length,
          nextFreeAtMs: cooling.length === 0 ? undefined : Math.min(...cooling.map((a) => a.coolUntilMs)),
          unassignedAtMs: eni.unassignedAtMs,
        };
      });
    },
  };
}
