/** Metrics of limited pods, in the names of the monitoring guide (family B: bytes, packets). */
import { Counter, Gauge, type Registry } from "prom-client";

export type Direction = "ingress" | "egress";

export interface PodLabels {
  readonly namespace: string;
  readonly pod: string;
}

/** What was counted since the last sample. */
export interface Counted {
  readonly bytes: number;
  readonly packets: number;
  readonly drops: number;
  readonly overlimits: number;
}

export type ShapingMetrics = ReturnType<typeof createShapingMetrics>;

export function createShapingMetrics(registry: Registry, node: string) {
  const registers = [registry];
  const perPod = ["node", "namespace", "pod"];
  const counter = (name: string, help: string, labelNames: string[]) =>
    new Counter({ name, help, labelNames, registers });
  const gauge = (name: string, help: string) =>
    new Gauge({ name, help, labelNames: [...perPod, "direction"], registers });
  const bytes = counter("terway_network_bytes_total", "Bytes of limited pods, both directions", perPod);
  const packets = counter("terway_network_packets_total", "Packets by interface", ["node", "interface"]);
  const dropped = counter("terway_network_packets_dropped_total", "Packets dropped by interface", [
    "node",
    "interface",
  ]);
  const drops = counter("terway_qos_dropped_total", "Packets of limited pods that were dropped", [
    ...perPod,
    "direction",
  ]);
  const overlimits = counter("terway_qos_overlimits_total", "How often a packet had to wait for its pod's rate", [
    ...perPod,
    "direction",
  ]);
  const current = gauge("terway_network_current_bandwidth_bytes", "Bytes/s of limited pods");
  const allocated = gauge("terway_network_allocated_bandwidth_bytes", "Bytes/s that pods are limited to");
  const violations = counter(
    "terway_qos_violations_total",
    "Intervals in which a pod's packets waited longer than its profile's latency_sla, or it had more than 110 % of its rate",
    ["node", "priority_class"],
  );
  // The same under the other name of the monitoring guide.
  const violationCount = counter("terway_qos_violation_count", "As terway_qos_violations_total", [
    "node",
    "priority_class",
  ]);
  return {
    observe(pod: PodLabels, direction: Direction, ifname: string, c: Counted, bytesPerSecond: number): void {
      bytes.inc({ node, ...pod }, c.bytes);
      packets.inc({ node, interface: ifname }, c.packets);
      dropped.inc({ node, interface: ifname }, c.drops);
      drops.inc({ node, ...pod, direction }, c.drops);
      overlimits.inc({ node, ...pod, direction }, c.overlimits);
      current.set({ node, ...pod, direction }, bytesPerSecond);
    },
    allocate(pod: PodLabels, direction: Direction, bytesPerSecond: number | undefined): void {
      if (bytesPerSecond === undefined) allocated.remove({ node, ...pod, direction });
      else allocated.set({ node, ...pod, direction }, bytesPerSecond);
    },
    violated(priorityClass: string): void {
      for (const series of [violations, violationCount]) series.inc({ node, priority_class: priorityClass });
    },
    /** The pod is gone: its series end. */
    forget(pod: PodLabels, ifname: string): void {
      bytes.remove({ node, ...pod });
      for (const series of [packets, dropped]) series.remove({ node, interface: ifname });
      for (const direction of ["ingress", "egress"] as const)
        for (const series of [drops, overlimits, current, allocated]) series.remove({ node, ...pod, direction });
    },
  };
}
