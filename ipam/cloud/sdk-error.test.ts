import { describe, expect, it } from "vitest";
import { endpointFields } from "./sdk.ts";
import { toCloudError } from "./sdk-error.ts";

/** As the SDK throws them. */
const refused = (status: number, code: string, more: object = {}) =>
  Object.assign(new Error(`${code}: code: ${status}, words request id: RID-1`), {
    statusCode: status,
    code,
    requestId: "RID-1",
    data: { RequestId: "RID-1", Code: code, Message: "words" },
    ...more,
  });
const network = (code: string) => Object.assign(new Error(`connect ${code} 10.0.0.1:443`), { code });

describe("toCloudError", () => {
  it.each([
    ["a refusal", refused(403, "InvalidVSwitchId.IpNotEnough"), "vswitch-full", "InvalidVSwitchId.IpNotEnough", false],
    ["throttling", refused(400, "Throttling.User"), "throttled", "Throttling.User", false],
    ["an unknown refusal", refused(400, "Brand.New"), "unknown", "Brand.New", false],
    ["a server error", refused(500, "InternalError"), "retry", "InternalError", true],
    ["an unknown server error", refused(502, "undefined"), "retry", "HTTP502", true],
    ["a broken connection", network("ECONNRESET"), "retry", "ECONNRESET", true],
    ["no route to the cloud", network("EHOSTUNREACH"), "retry", "EHOSTUNREACH", false],
    ["a refused connection", network("ECONNREFUSED"), "retry", "ECONNREFUSED", false],
    [
      "a time-out of the library",
      Object.assign(new Error("ReadTimeout"), { name: "RequestTimeoutError" }),
      "retry",
      "ConnectionBroken",
      true,
    ],
    ["a page that is no JSON", new SyntaxError("Unexpected token <"), "retry", "ConnectionBroken", true],
    ["something that is no error", "boom", "retry", "ConnectionBroken", true],
  ] as const)("%s", (_claim, error, cls, code, unknown) => {
    const got = toCloudError("AttachNetworkInterface", error);
    expect([got.class, got.code, got.outcomeUnknown]).toEqual([cls, code, unknown]);
    expect(got.action).toBe("AttachNetworkInterface");
  });

  it("names action, code, words and request id", () =>
    expect(toCloudError("DeleteNetworkInterface", refused(404, "InvalidEniId.NotFound")).message).toBe(
      "DeleteNetworkInterface: InvalidEniId.NotFound: words (request RID-1)",
    ));

  it.each([
    ["AssignPrivateIpAddresses", "Forbidden.RAM", "allow ecs:AssignPrivateIpAddresses"],
    ["DescribeVSwitches", "Forbidden", "allow vpc:DescribeVSwitches"],
  ])("names the RAM action that is missing for %s", (action, code, told) =>
    expect(toCloudError(action, refused(403, code)).message).toContain(told),
  );

  it("names none where the keys are wrong", () =>
    expect(toCloudError("X", refused(403, "InvalidAccessKeyId.NotFound")).message).not.toContain("allow"));

  it("keeps the cloud's hint on when to come back", () =>
    expect(toCloudError("X", refused(400, "Throttling", { retryAfter: 1500 })).retryAfterMs).toBe(1500));

  it("lets no secret through, in message or cause", () => {
    const keys = { accessKeyId: "LTAI-key", accessKeySecret: "hush-hush", securityToken: "tok-tok" };
    const data = { Message: "The string to sign is hush-hush LTAI-key\ntok-tok", RequestId: "R" };
    const error = Object.assign(refused(400, "SignatureDoesNotMatch", { data }), {
      lastRequest: { headers: { a: "hush-hush" } },
    });
    const got = toCloudError("X", error, keys);
    const shown = `${got.message} ${got.stack} ${String(got.cause)} ${JSON.stringify(got)} ${JSON.stringify(got.cause)}`;
    expect(shown).not.toMatch(/hush|LTAI|tok-tok/);
    expect(got.message).toContain("The string to sign is *** *** ***");
  });

  it("keeps messages short", () =>
    expect(toCloudError("X", refused(400, "Y", { data: { Message: "x".repeat(5000) } })).message.length).toBeLessThan(
      400,
    ));
});

describe("endpointFields", () => {
  it.each([
    [undefined, {}],
    ["", {}],
    ["ecs.cn-hangzhou.aliyuncs.com", { endpoint: "ecs.cn-hangzhou.aliyuncs.com", protocol: "https" }],
    ["http://127.0.0.1:8080", { endpoint: "127.0.0.1:8080", protocol: "http" }],
    ["HTTPS://ecs.internal/", { endpoint: "ecs.internal", protocol: "https" }],
  ])("%s", (endpoint, want) => expect(endpointFields(endpoint)).toEqual(want));
});
