/** What the keys of `eni_conf` must say together, once each of them is right by itself. */
import { cidrsOverlap, parseCidr, tryParseCidr } from "../net/cidr.ts";
import type { ConfigFault, ConfigWarning } from "./eni-conf.ts";
import type { EniConfig } from "./eni-conf-keys.ts";

export function checkRules(
  config: EniConfig,
  given: readonly string[],
  vpcCidrs: readonly string[],
  faults: ConfigFault[],
  warnings: ConfigWarning[],
): void {
  const fault = (key: string, value: unknown, accepted: string, why: string) =>
    faults.push({
      key,
      value: JSON.stringify(value),
      accepted,
      message: `"${key}" is ${JSON.stringify(value)}: want ${accepted} (${why})`,
    });
  const warn = (key: string, message: string) => warnings.push({ key, message });

  if (config.minPoolSize > config.maxPoolSize)
    fault(
      "min_pool_size",
      config.minPoolSize,
      `at most max_pool_size, ${config.maxPoolSize}`,
      "the floor of idle addresses lies above their ceiling",
    );

  for (const service of config.serviceCidrs)
    for (const vpc of vpcCidrs) {
      const range = tryParseCidr(vpc);
      if (range !== undefined && cidrsOverlap(parseCidr(service), range))
        fault(
          "service_cidr",
          service,
          `a range outside of the VPC's ${vpc}`,
          "Service and VPC addresses could not be told apart",
        );
    }
  for (const service of config.serviceCidrs)
    for (const cluster of config.clusterCidrs ?? [])
      if (cidrsOverlap(parseCidr(service), parseCidr(cluster)))
        fault(
          "Network",
          cluster,
          `a range that does not overlap service_cidr ${service}`,
          "Service and pod addresses could not be told apart",
        );

  if ((config.accessKey === "") !== (config.accessSecret === "")) {
    const missing = config.accessKey === "" ? "access_key" : "access_secret";
    fault(
      missing,
      "",
      "both access_key and access_secret, or neither for the instance's RAM role",
      "one of the pair alone signs nothing",
    );
  } else if (config.accessKey !== "") {
    // CON-40
    warn(
      "access_secret",
      "The configuration holds a cloud credential in plain text: use the instance's RAM role, or a Secret",
    );
  }

  const trunkSwitches = [
    ["trunk_on", config.trunkOn],
    ["enable_eni_trunking", config.enableEniTrunking],
    ["eni_capability.trunk", config.declaredTrunk],
  ] as const;
  if (config.networkMode === "Trunk")
    for (const [key, value] of trunkSwitches)
      if (value === false) fault(key, false, "true, or no such key", "network_mode Trunk needs trunking");
  if (config.networkMode === "VPC" && config.clusterCidrs === undefined)
    warn(
      "Network",
      "network_mode is VPC and the cluster's pod range is not set: pod ranges are taken from the nodes alone",
    );

  const { retryPeriodSeconds: retry, renewDeadlineSeconds: renew, leaseDurationSeconds: lease } = config;
  if (!(retry < renew && renew < lease))
    fault(
      "ha_config.renew_deadline_seconds",
      renew,
      `more than retry_period_seconds, ${retry}, and less than lease_duration_seconds, ${lease}`,
      "a leader that cannot renew in time would lose its lease",
    );
  if (config.warmup && config.minPoolSize === 0)
    warn("ip_warmup.enable", "min_pool_size is 0: there is nothing to warm up");
  if (!config.hotPlug && config.preAttachEniCount > 0)
    warn("pre_attach_eni_count", "hot_plug is false: no ENI is attached while the instance runs");
  if (given.includes("eni_capability.member_adapters") && config.declaredTrunk === false)
    warn("eni_capability.member_adapters", "eni_capability.trunk is false: member adapters are not used");
}

/** Whether pods may get a member ENI: mode Trunk, or one of the two switches in mode ENIIP (CON-3). */
export function trunkingEnabled(config: EniConfig): boolean {
  if (config.networkMode === "Trunk") return true;
  return config.networkMode === "ENIIP" && (config.trunkOn === true || config.enableEniTrunking === true);
}
