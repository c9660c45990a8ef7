/** The cloud's answer on an instance type, in the words of the configuration's limits. */
import type { InstanceLimits as TypeLimits } from "../../shared/config/instance-limits.ts";
import type { InstanceLimits } from "./cloud-api.ts";

export function toTypeLimits(instanceType: string, limits: InstanceLimits): TypeLimits {
  return {
    instanceType,
    eniQuantity: limits.enis,
    eniTotalQuantity: limits.enisTotal,
    ipv4PerEni: limits.ipv4PerEni,
    ipv6PerEni: limits.ipv6PerEni,
    trunkSupported: limits.trunkSupported,
  };
}
