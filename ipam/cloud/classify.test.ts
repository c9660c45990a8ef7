import { describe, expect, it } from "vitest";
import { type CloudErrorClass, classify, ERROR_CODES, ERROR_PREFIXES } from "./classify.ts";

/** Every code that alicloud-api section 3 names, with what it asks for. */
const SECTION_3: readonly (readonly [CloudErrorClass, string])[] = [
  ["throttled", "Throttling Throttling.User Throttling.Api"],
  ["retry", "ServiceUnavailable InternalError"],
  ["conflict", "Operation.Conflict OperationConflict"],
  ["conflict", "TaskConflict OperationFailed.Anything IncorrectVSwitchStatus IncorrectRouteEntryStatus"],
  ["vswitch-full", "InvalidVSwitchId.IpNotEnough QuotaExceeded.PrivateIpAddress"],
  ["capacity", "InsufficientPrefixInVSwitch"],
  ["capacity", "InvalidOperation.Ipv4CountExceeded InvalidOperation.Ipv6CountExceeded"],
  ["eni-limit", "EniPerInstanceLimitExceeded"],
  ["quota", "MaxEniCountExceeded SecurityGroupInstanceLimitExceed"],
  ["config", "InvalidSecurityGroupId.NotFound InvalidSecurityGroupId.NotVpc InvalidSecurityGroup.NotFound"],
  ["config", "InvalidVSwitchId.NotFound InvalidVSwitchId.IpInvalid"],
  ["config", "InvalidIp.IpAssigned InvalidPrivateIpAddress.Duplicated InvalidIp.IpRepeated"],
  ["gone", "InvalidIp.IpUnassigned InvalidEniId.NotFound InvalidEcsId.NotFound InvalidInstanceId.NotFound"],
  ["state", "InvalidOperation.InvalidEniState InvalidOperation.InvalidEcsState IncorrectInstanceStatus"],
  ["bug", "InvalidOperation.DetachPrimaryEniNotAllowed"],
  ["not-ours", "InvalidOperation.InvalidEniType InvalidOperation.EniServiceManaged InvalidOperation.EniLinked"],
  ["config", "InvalidOperation.AvailabilityZoneMismatch InvalidOperation.VpcMismatch"],
  ["auth", "Forbidden.RAM Forbidden.SubUser InvalidAccessKeyId.NotFound InvalidSecurityToken.Expired"],
  ["auth", "SignatureDoesNotMatch InvalidTimeStamp.Expired"],
  ["retry", "SignatureNonceUsed"],
  ["bug", "MissingParameter InvalidParameter InvalidParameter.Conflict UnsupportedParameter InvalidAction"],
  ["config", "Duplicate.TagKey InvalidTagKey.Malformed QuotaExceed.Tags"],
  ["idempotent-failed", "IdempotentParameterMismatch IdempotentFailed"],
];
const rows = SECTION_3.flatMap(([cls, codes]) => codes.split(" ").map((code) => [code, cls] as const));

describe("classify", () => {
  it.each(rows)("%s is %s", (code, cls) => expect(classify(code, 400)).toBe(cls));

  it("has a row here for every code of its table", () => {
    const covered = new Set(rows.map(([code]) => code));
    const beyond = new Set(["InvalidVSwitch.Ipv6NotTurnOn", "InvalidRouteEntryId.NotFound", "IdempotentProcessing"]);
    expect(Object.keys(ERROR_CODES).filter((code) => !covered.has(code) && !beyond.has(code))).toEqual([]);
    expect(rows).toHaveLength(57);
  });

  it("takes a token whose first call still runs for a conflict", () =>
    expect(classify("IdempotentProcessing", 403)).toBe("conflict"));

  it("names no prefix that another one before it swallows", () => {
    for (const [i, [prefix]] of ERROR_PREFIXES.entries())
      for (const [before] of ERROR_PREFIXES.slice(0, i)) expect(prefix.startsWith(before)).toBe(false);
  });

  it.each([
    ["Something.New", 403, "unknown"],
    ["Something.New", 503, "retry"],
    ["Something.New", 429, "throttled"],
    ["", undefined, "unknown"],
    ["toString", 400, "unknown"],
    ["Forbidden.Unauthorized", 403, "auth"],
    ["InvalidSecurityToken.MismatchWithAccessKey", 400, "auth"],
  ] as const)("%s with status %s is %s", (code, status, cls) => expect(classify(code, status)).toBe(cls));
});
