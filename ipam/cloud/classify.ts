/**
 * What an error code of ECS or VPC means for us: the table of alicloud-api section 3 as data. Decided by the code alone,
 * never by the message.
 */

export type CloudErrorClass =
  /** Over the budget of account, region and operation: the next minute. */
  | "throttled"
  /** Temporary, or the outcome is not known: again, with the same ClientToken. */
  | "retry"
  /** Another task runs on the same thing: again soon, one call at a time. */
  | "conflict"
  /** The vSwitch has no address left: another one, or later. */
  | "vswitch-full"
  /** The instance has its maximum of ENIs. */
  | "eni-limit"
  /** The ENI has its maximum of addresses, or the vSwitch no prefix: our view is stale. */
  | "capacity"
  /** Quota of the account, or a full security group: give up loudly. */
  | "quota"
  /** It does not exist (any more): done, where it was to go. */
  | "gone"
  /** Not in this state: wait for the state. */
  | "state"
  /** Managed by somebody else: leave it alone for good. */
  | "not-ours"
  /** The configuration asks for what is not there. */
  | "config"
  /** Credentials or rights. */
  | "auth"
  /** The request itself is wrong. */
  | "bug"
  /** The ClientToken is spent: a new one. */
  | "idempotent-failed"
  /** Not in the table: kept whole, counted, tried again after a long pause. */
  | "unknown";

export const ERROR_CODES: Readonly<Record<string, CloudErrorClass>> = {
  ServiceUnavailable: "retry",
  InternalError: "retry",
  "Operation.Conflict": "conflict",
  OperationConflict: "conflict",
  TaskConflict: "conflict",
  // The first call with this ClientToken still runs.
  IdempotentProcessing: "conflict",
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
  "InvalidVSwitch.Ipv6NotTurnOn": "config",
  "InvalidIp.IpAssigned": "config",
  "InvalidPrivateIpAddress.Duplicated": "config",
  "InvalidIp.IpRepeated": "config",
  // NB: also the answer for an ENI's primary address, which is never ours to give back.
  "InvalidIp.IpUnassigned": "gone",
  "InvalidEniId.NotFound": "gone",
  "InvalidEcsId.NotFound": "gone",
  "InvalidInstanceId.NotFound": "gone",
  "InvalidRouteEntryId.NotFound": "gone",
  "InvalidOperation.InvalidEniState": "state",
  "InvalidOperation.InvalidEcsState": "state",
  IncorrectInstanceStatus: "state",
  "InvalidOperation.DetachPrimaryEniNotAllowed": "bug",
  "InvalidOperation.InvalidEniType": "not-ours",
  "InvalidOperation.EniServiceManaged": "not-ours",
  "InvalidOperation.EniLinked": "not-ours",
  "InvalidOperation.AvailabilityZoneMismatch": "config",
  "InvalidOperation.VpcMismatch": "config",
  "InvalidAccessKeyId.NotFound": "auth",
  SignatureDoesNotMatch: "auth",
  // The SDK draws a new nonce for every request: the next one is right.
  SignatureNonceUsed: "retry",
  // Our clock is wrong by more than 15 minutes, or the answer to a proxy's delay.
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

/** Families of codes; the first that fits. An equality test on `Throttling` would miss two of its three codes. */
export const ERROR_PREFIXES: readonly (readonly [string, CloudErrorClass])[] = [
  ["Throttling", "throttled"],
  ["OperationFailed.", "conflict"],
  ["InsufficientPrefix", "capacity"],
  ["Forbidden", "auth"],
  ["InvalidSecurityToken", "auth"],
  ["InvalidAccessKeyId", "auth"],
  ["IncompleteSignature", "auth"],
  ["InvalidAction", "bug"],
  ["MissingParameter", "bug"],
  ["QuotaExceed", "quota"],
];

/**
 * @param code As answered; empty when there was no answer.
 * @param httpStatus Of the answer: decides where the table does not know the code. Absent: no answer came.
 */
export function classify(code: string, httpStatus?: number): CloudErrorClass {
  const exact = Object.hasOwn(ERROR_CODES, code) ? ERROR_CODES[code] : undefined;
  if (exact !== undefined) return exact;
  const family = ERROR_PREFIXES.find(([prefix]) => code.startsWith(prefix));
  if (family !== undefined) return family[1];
  if (httpStatus === 429) return "throttled";
  return httpStatus !== undefined && httpStatus >= 500 ? "retry" : "unknown";
}

/** A right for this one operation is missing, as opposed to keys that are good for nothing. */
export function isDenied(failure: { readonly class: CloudErrorClass; readonly code: string }): boolean {
  return failure.class === "auth" && failure.code.startsWith("Forbidden");
}
