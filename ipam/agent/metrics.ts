/** Metrics of the node, in the names of the monitoring guide (family A: milliseconds and percent). */
import { createServer, type Server } from "node:http";
import { Counter, Gauge, Histogram, Registry } from "prom-client";

export interface PoolFigures {
  readonly total: number;
  readonly allocated: number;
  readonly available: number;
  readonly enis: number;
  readonly attached: number;
}

export type AgentMetrics = ReturnType<typeof createMetrics>;

export function createMetrics(node: string) {
  const registry = new Registry();
  const registers = [registry];
  const gauge = (name: string, help: string) => new Gauge({ name, help, labelNames: ["node"], registers });
  const pool = {
    total: gauge("terway_ip_pool_total", "Addresses in the pool"),
    allocated: gauge("terway_ip_pool_allocated", "Addresses held by pods"),
    available: gauge("terway_ip_pool_available", "Addresses not held by pods"),
    utilization: gauge("terway_ip_pool_utilization", "Allocated addresses, percent of the pool"),
    enis: gauge("terway_eni_total", "ENIs of the pool"),
    attached: gauge("terway_eni_attached", "ENIs of the pool in service"),
    ips: gauge("terway_eni_ip_count", "Secondary addresses of the ENIs"),
  };
  const calls = new Counter({
    name: "terway_api_call_total",
    help: "Cloud API calls",
    labelNames: ["node", "action"],
    registers,
  });
  const errors = new Counter({
    name: "terway_api_call_errors",
    help: "Failed cloud API calls",
    labelNames: ["node", "action"],
    registers,
  });
  const latency = new Histogram({
    name: "terway_api_call_latency",
    help: "Cloud API latency, ms",
    labelNames: ["node"],
    buckets: [10, 50, 100, 500, 1000, 5000, 20_000],
    registers,
  });
  const eniCreate = new Histogram({
    name: "terway_eni_create_latency",
    help: "From the first call to an ENI in service, ms",
    labelNames: ["node"],
    buckets: [500, 1000, 2500, 5000, 10_000, 30_000],
    registers,
  });
  const cni = new Histogram({
    name: "terway_cni_operation_latency",
    help: "CNI operations, ms",
    labelNames: ["node", "operation"],
    buckets: [1, 2, 5, 10, 25, 50, 100, 500, 1000, 3000, 10_000],
    registers,
  });
  const limited = new Counter({
    name: "terway_api_rate_limit_hits",
    help: "Calls held back by our own rate limit",
    labelNames: ["node"],
    registers,
  });
  const repairs = new Counter({
    name: "terway_datapath_repairs_total",
    help: "Things put back that foreign hands removed",
    labelNames: ["node"],
    registers,
  });
  const nodeEnis = new Counter({
    name: "terway_multi_eni_creation_failures_total",
    help: "ENIs of a MultiENIConfig that could not be made",
    labelNames: ["node"],
    registers,
  });
  nodeEnis.inc({ node }, 0);
  return {
    registry,
    nodeEniFailed: () => nodeEnis.inc({ node }),
    observeCall(action: string, code: string, ms: number): void {
      calls.inc({ node, action });
      errors.inc({ node, action }, code === "ok" ? 0 : 1);
      latency.observe({ node }, ms);
    },
    observePool(f: PoolFigures): void {
      pool.total.set({ node }, f.total);
      pool.allocated.set({ node }, f.allocated);
      pool.available.set({ node }, f.available);
      pool.utilization.set({ node }, f.total === 0 ? 0 : (100 * f.allocated) / f.total);
      pool.enis.set({ node }, f.enis);
      pool.attached.set({ node }, f.attached);
      pool.ips.set({ node }, f.total);
    },
    observeEniCreate: (ms: number) => eniCreate.observe({ node }, ms),
    observeCni: (operation: string, ms: number) => cni.observe({ node, operation }, ms),
    limitHit: () => limited.inc({ node }),
    repaired: (n: number) => repairs.inc({ node }, n),
  };
}

/** @param address `HOST:PORT` of /metrics and /healthz. */
export function serveMetrics(registry: Registry, address: string): Promise<Server> {
  const [host = "127.0.0.1", port = "9191"] = address.split(":");
  const server = createServer(async (request, response) => {
    if (request.url === "/healthz") {
      response.end("ok\n");
      return;
    }
    response.setHeader("content-type", registry.contentType);
    response.end(await registry.metrics());
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(Number(port), host, () => resolve(server));
  });
}
