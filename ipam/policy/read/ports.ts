/** Protocols and ports in the forms of the three policy APIs. */
import type { Protocol } from "../../../shared/policy/compiled.ts";
import type { PortByName, PortMatch } from "../objects.ts";
import type { Field } from "./check.ts";

const PROTOCOLS = ["TCP", "UDP", "SCTP"] as const;
export const ANY_PORT = { first: 0, last: 65_535 } as const;

/** TCP when absent, as the API has it. */
export function readProtocol(field: Field): Protocol {
  return (field.oneOf(PROTOCOLS) ?? "TCP").toLowerCase() as Protocol;
}

function readPortName(field: Field): string | undefined {
  const name = field.text();
  if (name === undefined) return undefined;
  const good =
    name.length >= 1 && name.length <= 15 && /^[a-z0-9-]+$/.test(name) && /[a-z]/.test(name) && !/^-|-$|--/.test(name);
  return good
    ? name
    : field.fault(`"${name}" is no port name: 1 to 15 lower case letters, digits and single "-", a letter among them`);
}

/** NetworkPolicyPort: { protocol, port, endPort }. */
export function readNetworkPolicyPort(field: Field): PortMatch | undefined {
  if (field.required(field.map(["protocol", "port", "endPort"])) === undefined) return undefined;
  const protocol = readProtocol(field.at("protocol"));
  const port = field.at("port");
  const endPort = field.at("endPort");
  if (port.absent) {
    if (!endPort.absent) endPort.fault("may not be set when port is not");
    return { protocol, ...ANY_PORT };
  }
  if (typeof port.value === "string") {
    const name = readPortName(port);
    if (!endPort.absent) endPort.fault("may not be set when port is a name");
    return name === undefined ? undefined : { protocol, name };
  }
  const first = port.integer(1, 65_535);
  const last = endPort.absent ? first : endPort.integer(1, 65_535);
  if (first === undefined || last === undefined) return undefined;
  if (last < first) return endPort.fault(`must not be less than port, is ${last} with port ${first}`);
  return { protocol, first, last };
}

function readRange(field: Field, protocol: Protocol): PortMatch | undefined {
  const first = field.at("start").required(field.at("start").integer(1, 65_535));
  const last = field.at("end").required(field.at("end").integer(1, 65_535));
  if (first === undefined || last === undefined) return undefined;
  return first < last ? { protocol, first, last } : field.at("end").fault(`must be greater than start, is ${last}`);
}

function readNumber(field: Field, protocol: Protocol): PortMatch | undefined {
  const port = field.required(field.integer(1, 65_535));
  return port === undefined ? undefined : { protocol, first: port, last: port };
}

/** AdminNetworkPolicyPort: one of portNumber, portRange, namedPort. */
export function readAdminPort(field: Field): PortMatch | undefined {
  if (exactlyOne(field, ["portNumber", "portRange", "namedPort"]) === undefined) return undefined;
  if (!field.at("namedPort").absent) return readByName(field.at("namedPort"));
  const number = field.at("portNumber");
  if (!number.absent) {
    number.map(["protocol", "port"]);
    return readNumber(number.at("port"), readProtocol(number.at("protocol")));
  }
  const range = field.at("portRange");
  range.map(["protocol", "start", "end"]);
  return readRange(range, readProtocol(range.at("protocol")));
}

function readByName(field: Field): PortByName | undefined {
  const name = readPortName(field);
  return name === undefined ? undefined : { name };
}

/** ClusterNetworkPolicyProtocol: one of tcp, udp, sctp, destinationNamedPort. */
export function readClusterProtocol(field: Field): PortMatch | undefined {
  const which = exactlyOne(field, ["tcp", "udp", "sctp", "destinationNamedPort"]);
  if (which === undefined) return undefined;
  if (which === "destinationNamedPort") return readByName(field.at(which));
  const protocol = which as Protocol;
  field.at(which).map(["destinationPort"]);
  const port = field.at(which).at("destinationPort");
  if (port.absent) return { protocol, ...ANY_PORT };
  const form = exactlyOne(port, ["number", "range"]);
  if (form === undefined) return undefined;
  if (form === "number") return readNumber(port.at("number"), protocol);
  port.at("range").map(["start", "end"]);
  return readRange(port.at("range"), protocol);
}

/** The one key that is set; a fault when it is none or several. */
export function exactlyOne<T extends string>(field: Field, keys: readonly T[]): T | undefined {
  if (field.required(field.map(keys)) === undefined) return undefined;
  const set = keys.filter((key) => !field.at(key).absent);
  if (set.length !== 1)
    return field.fault(`must have exactly one of ${keys.join(", ")}, has ${set.join(", ") || "none"}`);
  return set[0];
}
