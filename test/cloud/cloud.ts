/** The emulated cloud in one piece: model, API, metadata service and, if wanted, the data plane. */
import type { Server } from "node:http";
import { inNetns } from "../runtime/exec.ts";
import { type ApiServer, createApiServer } from "./api-server.ts";
import { API_IP, createFabric, type Fabric, METADATA_IP } from "./fabric.ts";
import { createMetadataServer, type MetadataFault } from "./metadata-server.ts";
import { createModel, type Instance, type Model, type ModelEvents } from "./model.ts";
import { removeNetnsByPrefix } from "./netns.ts";
import type { Credential } from "./signature.ts";

export interface CloudOptions {
  /** Name space prefix; also tells several clouds on one machine apart. */
  readonly prefix: string;
  readonly fabric: boolean;
  readonly ipv6?: boolean;
  readonly latencyMs?: number;
  readonly delays?: {
    readonly attachMs: number;
    readonly detachMs: number;
    readonly deleteMs: number;
    readonly routeMs: number;
  };
  readonly budgets?: Readonly<Record<string, number>>;
  readonly mtuBytes?: number;
  readonly hardenedMetadata?: boolean;
  /** Members of trunks exist in the API only, without a wire. */
  readonly membersUnplugged?: boolean;
}

export interface Cloud {
  readonly model: Model;
  readonly api: ApiServer;
  readonly fabric: Fabric | undefined;
  /** For clients on this machine outside of the VPC. */
  readonly apiUrl: string;
  readonly metadataUrl: string;
  readonly metadataFaults: MetadataFault[];
  /** For clients inside instances. */
  readonly inside: { readonly apiEndpoint: string; readonly metadataUrl: string };
  credentials: Credential[];
  addInstance(i: { readonly name: string; readonly type: string; readonly vswitchId: string }): Instance;
  terminateInstance(id: string): void;
  close(): Promise<void>;
}

export const DEFAULT_SECURITY_GROUP = "sg-emu-default";
const ROLE = "KubernetesWorkerRole";
const QUICK = { attachMs: 300, detachMs: 200, deleteMs: 100, routeMs: 100 };

/** A role's credential as the metadata service hands it out, and a fixed one for tools. */
function initialCredentials(): Credential[] {
  return [
    {
      accessKeyId: "STS.emulated",
      accessKeySecret: "emulated-role-secret",
      securityToken: "emulated-token",
      expiresAt: Date.now() + 6 * 3_600_000,
    },
    { accessKeyId: "emulated-key", accessKeySecret: "emulated-secret" },
  ];
}

/** Listens on 127.0.0.1, or on every address of another network namespace. Resolves with the port. */
function listen(server: Server, at: { readonly port: number; readonly netns?: string }): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    const done = () => {
      const address = server.address();
      resolve(typeof address === "object" && address !== null ? address.port : at.port);
    };
    // Without a host the socket is made within this synchronous call, and stays in the namespace of that moment; with
    // one, it would be made only after a look-up.
    if (at.netns === undefined) server.listen({ port: at.port, host: "127.0.0.1" }, done);
    else inNetns(at.netns, () => server.listen({ port: at.port, exclusive: true }, done));
  });
}

function fabricEvents(fabric: Fabric): ModelEvents {
  return {
    attached: (eni, instance) => fabric.attach(eni, instance),
    detached: (eni) => fabric.detach(eni),
    addresses: (eni) => fabric.addresses(eni),
    groups: (eni) => fabric.groups(eni),
    rules: (groupId) => fabric.rules(groupId),
    route: (entry, present) => fabric.route(entry, present),
  };
}

export async function createCloud(options: CloudOptions): Promise<Cloud> {
  if (options.fabric) removeNetnsByPrefix(`${options.prefix}-`);
  let closed = false;
  const vpcCidr = "10.0.0.0/8";
  const vpcCidr6 = options.ipv6 ? "2408:4000::/56" : undefined;
  const fabric: Fabric | undefined = options.fabric
    ? createFabric({
        prefix: options.prefix,
        vpcCidr,
        vpcCidr6,
        mtuBytes: options.mtuBytes ?? 1500,
        membersUnplugged: options.membersUnplugged ?? false,
        model: () => model,
      })
    : undefined;
  const model: Model = createModel({
    region: "cn-emulated",
    vpcCidr,
    delays: options.delays ?? QUICK,
    // What is still under way when the cloud closes never happens.
    schedule: (ms, work) => void setTimeout(() => closed || work(), ms).unref(),
    ...(fabric ? { events: fabricEvents(fabric), noMembers: fabric.noMembers } : {}),
  });
  model.addSecurityGroup(DEFAULT_SECURITY_GROUP);
  const cloud = { credentials: initialCredentials() };
  const apiOptions = {
    model,
    credentials: () => cloud.credentials,
    latencyMs: options.latencyMs ?? 5,
    budgets: options.budgets ?? {},
    throttlingCode: "Throttling.User" as const,
  };
  const api = createApiServer(apiOptions);
  const metadataOptions = {
    model,
    role: ROLE,
    credential: () => cloud.credentials[0] ?? initialCredentials()[0] ?? { accessKeyId: "", accessKeySecret: "" },
    hardened: options.hardenedMetadata ?? false,
    faults: [] as MetadataFault[],
  };
  const metadata = createMetadataServer(metadataOptions);
  const servers: Server[] = [api.server, metadata];
  const apiPort = await listen(api.server, { port: 0 });
  const metadataPort = await listen(metadata, { port: 0 });
  if (fabric) {
    // The same handlers behind sockets of the router's namespace: that is how instances reach them.
    const { createServer } = await import("node:http");
    for (const [of, port] of [
      [api.server, 8080],
      [metadata, 80],
    ] as const) {
      const twin = createServer((request, response) => void of.emit("request", request, response));
      await listen(twin, { port, netns: fabric.router.path });
      servers.push(twin);
    }
  }
  // A process that is server and client at once, and waits for a tool, would close a connection while it sends on it.
  for (const server of servers) server.keepAliveTimeout = 0;
  return {
    model,
    api,
    fabric,
    apiUrl: `http://127.0.0.1:${apiPort}`,
    metadataUrl: `http://127.0.0.1:${metadataPort}`,
    metadataFaults: metadataOptions.faults,
    inside: { apiEndpoint: `${API_IP}:8080`, metadataUrl: `http://${METADATA_IP}` },
    get credentials() {
      return cloud.credentials;
    },
    set credentials(value) {
      cloud.credentials = value;
    },
    addInstance: (i) => model.addInstance({ ...i, securityGroup: DEFAULT_SECURITY_GROUP }),
    terminateInstance(id) {
      model.terminateInstance(id);
      fabric?.removeInstance(id);
    },
    async close() {
      closed = true;
      await Promise.all(
        servers.map(
          (server) =>
            new Promise<void>((resolve) => {
              server.closeAllConnections();
              server.close(() => resolve());
            }),
        ),
      );
      fabric?.close();
    },
  };
}
