/** Says in one sentence that the kernel cannot do what policies need, where its errno alone would puzzle. */
import { NetlinkError } from "../netlink/socket.ts";

const NEEDED =
  "NetworkPolicy needs CONFIG_NF_TABLES, NF_TABLES_INET, NFT_CT, NFT_LIMIT, NFT_LOG, NF_CONNTRACK (Linux 5.6 or later)";

/** The same error, with the cause where it is a missing feature. */
export function kernelLacks(error: NetlinkError): NetlinkError {
  const { errno, request } = error;
  const noSubsystem = errno === "EOPNOTSUPP" || errno === "EPROTONOSUPPORT" || errno === "EAFNOSUPPORT";
  const noTables = errno === "EINVAL" && /list tables|generation/.test(request);
  if (!noSubsystem && !noTables) return error;
  return new NetlinkError({
    errno,
    extack: `${error.extack === "" ? "" : `${error.extack}; `}this kernel has no nftables for that: ${NEEDED}`,
    offset: undefined,
    request,
  });
}
