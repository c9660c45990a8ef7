/** What an error code of ECS or VPC means for us. Decided by the code alone, never by the message. */

export type CloudErrorClass =
  /** Over the budget of account, region and operation. */
  | "throttled"
  /** Temporary, or the outcome is not known: again, with the same ClientToken. */
  | "retry"
  /** Another task runs on the same thing: again soon. */
  | "conflict"
  | "vswitch-full"
  /** The instance has its maximum of ENIs. */
  | "eni-limit"
  /** The ENI has its maximum of addresses: our view is stale. */
  | "capacity"
  /** Quota of the account, or a full security group. */
  | "quota"
  | "gone"
  | "state"
  | "not-ours"
  | "config"
  | "auth"
  | "bug"
  | "idempotent-failed"
  | "unknown";

const CODES: Readonly<Record<string, CloudErrorClass>> = {
  ServiceUnavailable: "retry",
  InternalError: "retry",
  "Operation.Conflict": "conflict",
  OperationConflict: "conflict",
  TaskConflict: "conflict",
  IncorrectVSwitchStatus: "conflict",
  IncorrectRouteEntryStatus: "conflict",
  "InvalidVSwitchId.IpNotEnough": "vswitch-full",
  "QuotaExceeded.PrivateIpAddress": "vswitch-full",
  "InvalidOperation.Ipv4CountExceeded": "capacity",
  "InvalidOperation.Ipv6CountExceeded": "capacity",
  EniPerInstanceLimitExceeded: "eni-limit",
  MaxEniCountExceeded: "quota",
  SecurityGroupInstanceLimitExceed: "quota",
  "InvalidSecurityGroupId.NotFound": "config",
  "InvalidSecurityGroupId.NotVpc": "config",
  "InvalidSecurityGroup.NotFound": "config",
  "InvalidVSwitchId.NotFound": "config",
  "InvalidVSwitchId.IpInvalid": "config",
  "InvalidIp.IpAssigned": "config",
  "InvalidPrivateIpAddress.Duplicated": "config",
  "InvalidIp.IpRepeated": "config",
  "InvalidIp.IpUnassigned": "gone",
  "InvalidEniId.NotFound": "gone",
  "InvalidEcsId.NotFound": "gone",
  "InvalidInstanceId.NotFound": "gone",
  "InvalidOperation.InvalidEniState": "state",
  "InvalidOperation.InvalidEcsState": "state",
  IncorrectInstanceStatus: "state",
  "InvalidOperation.DetachPrimaryEniNotAllowed": "bug",
  "InvalidOperation.InvalidEniType": "not-ours",
  "InvalidOperation.EniServiceManaged": "not-ours",
  "InvalidOperation.EniLinked": "not-ours",
  "InvalidOperation.AvailabilityZoneMismatch": "config",
  "InvalidOperation.VpcMismatch": "config",
  "Forbidden.RAM": "auth",
  "Forbidden.SubUser": "auth",
  "InvalidAccessKeyId.NotFound": "auth",
  "InvalidSecurityToken.Expired": "auth",
  SignatureDoesNotMatch: "auth",
  SignatureNonceUsed: "retry",
  "InvalidTimeStamp.Expired": "auth",
  MissingParameter: "bug",
  InvalidParameter: "bug",
  "InvalidParameter.Conflict": "bug",
  UnsupportedParameter: "bug",
  InvalidAction: "bug",
  "Duplicate.TagKey": "config",
  "InvalidTagKey.Malformed": "config",
  "QuotaExceed.Tags": "config",
  IdempotentParameterMismatch: "idempotent-failed",
  IdempotentFailed: "idempotent-failed",
};

/** @param code As answered; a broken connection has none of these and is `retry` by whoever sees it. */
export function classify(code: string): CloudErrorClass {
  // Throttling, Throttling.User, Throttling.Api: an equality test would miss two of the three.
  if (code.startsWith("Throttling")) return "throttled";
  if (code.startsWith("OperationFailed.")) return "conflict";
  return CODES[code] ?? "unknown";
}
