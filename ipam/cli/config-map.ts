/** The ConfigMap eni-config (CFG-1) as people have it: YAML or JSON, of one object or of several. */
import { parseAllDocuments } from "yaml";
import type { LegacyDocuments } from "../conflist/from-config.ts";

const NAME = "eni-config";

/** @throws {Error} When there is no such ConfigMap in it. */
export function readConfigMap(text: string, file: string): Partial<LegacyDocuments> {
  const documents = parseAllDocuments(text);
  const objects = ("empty" in documents ? [] : documents).flatMap((document) => {
    const [problem] = document.errors;
    if (problem) throw new Error(`${file} is no YAML: ${problem.message}`);
    const value = document.toJS() as Json;
    return isObject(value) && Array.isArray(value.items) ? (value.items as Json[]) : [value];
  });
  const maps = objects.filter((o) => isObject(o) && o.kind === "ConfigMap");
  const map = maps.length === 1 ? maps[0] : maps.find((m) => isObject(m.metadata) && m.metadata.name === NAME);
  if (map === undefined || !isObject(map.data))
    throw new Error(`${file} has no ConfigMap ${NAME} with data: kubectl -n kube-system get cm ${NAME} -o yaml`);
  const { data } = map;
  const of = (key: string) => (typeof data[key] === "string" ? data[key] : undefined);
  const [terwayConf, eniConf, disableNetworkPolicy] = [
    of("10-terway.conf"),
    of("eni_conf"),
    of("disable_network_policy"),
  ];
  return {
    ...(terwayConf === undefined ? {} : { terwayConf }),
    ...(eniConf === undefined ? {} : { eniConf }),
    ...(disableNetworkPolicy === undefined ? {} : { disableNetworkPolicy }),
  };
}

type Json = Readonly<Record<string, unknown>>;
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);
