/** The instance metadata service, http://100.100.100.200/latest/. The source address tells which instance asks. */
import { randomUUID } from "node:crypto";
import { createServer, type Server } from "node:http";
import { type Model, ownerOf } from "./model.ts";
import type { Credential } from "./signature.ts";

export interface MetadataOptions {
  readonly model: Model;
  readonly role: string;
  readonly credential: () => Credential;
  /** Refuse reads without a token. */
  readonly hardened: boolean;
  /** The first that fits answers; taken off when its `times` are over. */
  readonly faults?: readonly MetadataFault[];
}

/** Stale and missing answers, lists that lag behind, a service that fails. */
export interface MetadataFault {
  /** Of the path behind `/latest/`, such as `meta-data/network/interfaces/macs/`. */
  readonly path: RegExp;
  times: number;
  readonly answer: { readonly status: number; readonly text: string };
}

export function createMetadataServer(options: MetadataOptions): Server {
  const { model } = options;
  const tokens = new Map<string, number>();

  /** @returns undefined for 404. */
  function read(path: string, instanceId: string): string | undefined {
    const instance = model.instanceOf(instanceId);
    const primary = model.eniOf(instance.primaryEniId);
    const vswitch = model.vswitchOf(instance.vswitchId);
    const attached = model.attachedTo(instanceId).filter((e) => e.status === "InUse" && e.type !== "Member");
    const single: Readonly<Record<string, string>> = {
      "instance-id": instance.id,
      "region-id": model.region,
      "zone-id": instance.zone,
      "vpc-id": model.vpcId,
      "vswitch-id": instance.vswitchId,
      "vswitch-cidr-block": vswitch.cidr,
      hostname: instance.name,
      "network-type": "vpc",
      "instance/instance-type": instance.type,
      mac: primary.mac,
      "private-ipv4": primary.primaryIp,
      "network/interfaces/macs/": attached.map((e) => `${e.mac}/`).join("\n"),
      "ram/security-credentials/": options.role,
    };
    const value = single[path];
    if (value !== undefined) return value;
    if (path === `ram/security-credentials/${options.role}`) {
      const c = options.credential();
      return JSON.stringify({
        AccessKeyId: c.accessKeyId,
        AccessKeySecret: c.accessKeySecret,
        SecurityToken: c.securityToken,
        Code: "Success",
        Expiration: new Date(c.expiresAt ?? Date.now() + 3_600_000).toISOString(),
        LastUpdated: new Date().toISOString(),
      });
    }
    const nic = /^network\/interfaces\/macs\/([^/]+)\/(.+)$/.exec(path);
    const eni = attached.find((e) => e.mac === nic?.[1]);
    if (nic === null || eni === undefined) return undefined;
    const on = model.vswitchOf(eni.vswitchId);
    const fields: Readonly<Record<string, string | undefined>> = {
      "network-interface-id": eni.id,
      "primary-ip-address": eni.primaryIp || undefined,
      "private-ipv4s": eni.ips.size > 0 ? JSON.stringify([...eni.ips]) : undefined,
      gateway: model.gatewayOf(on) || undefined,
      "vswitch-id": on.id,
      "vswitch-cidr-block": on.cidr || undefined,
      "vpc-id": model.vpcId,
      "vswitch-ipv6-cidr-block": on.cidr6,
      ipv6s: eni.ips6.size > 0 ? `[${[...eni.ips6].join(", ")}]` : undefined,
      "ipv6-gateway": eni.ips6.size > 0 ? model.gateway6Of(on) : undefined,
    };
    return fields[nic[2] ?? ""];
  }

  return createServer((request, response) => {
    const answer = (status: number, text: string) =>
      response.writeHead(status, { "content-type": "text/plain" }).end(text);
    const path = decodeURIComponent(new URL(request.url ?? "/", "http://metadata").pathname).replace(
      /^\/(latest|2016-01-01)\//,
      "",
    );
    if (path === "api/token" && request.method === "PUT") {
      const seconds = Number(request.headers["x-aliyun-ecs-metadata-token-ttl-seconds"]);
      if (!(seconds > 0 && seconds <= 21_600)) return answer(400, "bad ttl");
      const token = randomUUID();
      tokens.set(token, Date.now() + seconds * 1000);
      return answer(200, token);
    }
    const fault = options.faults?.find((f) => f.times > 0 && f.path.test(path));
    if (fault !== undefined) {
      fault.times -= 1;
      return answer(fault.answer.status, fault.answer.text);
    }
    const token = request.headers["x-aliyun-ecs-metadata-token"];
    if (token !== undefined && (tokens.get(String(token)) ?? 0) < Date.now()) return answer(401, "token expired");
    if (token === undefined && options.hardened) return answer(403, "token needed");
    // Tools outside of the VPC may say for whom they ask.
    const source = String(request.headers["x-emulator-source"] ?? request.socket.remoteAddress ?? "").replace(
      /^::ffff:/,
      "",
    );
    const instanceId = ownerOf(model, source)?.instanceId;
    const value = instanceId === undefined ? undefined : read(path.replace(/^meta-data\//, ""), instanceId);
    return value === undefined ? answer(404, "not found") : answer(200, value);
  });
}
