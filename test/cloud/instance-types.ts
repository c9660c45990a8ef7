/** Instance types and their limits, as DescribeInstanceTypes answers (numbers of the public type tables). */
export interface InstanceType {
  readonly id: string;
  /** Primary ENI included. */
  readonly eniQuantity: number;
  /** Per ENI, its primary address included. */
  readonly ipv4PerEni: number;
  readonly ipv6PerEni: number;
  readonly eniTotalQuantity: number;
  readonly trunk: boolean;
}

function type(id: string, eniQuantity: number, ipv4PerEni: number, members = 0, ipv6PerEni = ipv4PerEni): InstanceType {
  return {
    id,
    eniQuantity,
    ipv4PerEni,
    ipv6PerEni,
    eniTotalQuantity: eniQuantity + members,
    trunk: members > 0,
  };
}

export const INSTANCE_TYPES: readonly InstanceType[] = [
  type("ecs.g6.large", 3, 10),
  type("ecs.g6.xlarge", 4, 15),
  type("ecs.g6.2xlarge", 4, 15),
  type("ecs.g6.4xlarge", 8, 30),
  type("ecs.g6.8xlarge", 8, 30),
  type("ecs.g7.large", 3, 10),
  type("ecs.g7.xlarge", 4, 15),
  type("ecs.g7.2xlarge", 4, 15),
  type("ecs.g7.4xlarge", 8, 30),
  type("ecs.g7.8xlarge", 8, 30),
  type("ecs.ebmg7.32xlarge", 32, 30, 256),
  type("ecs.g7ne.24xlarge", 15, 50, 200),
  type("ecs.c7.16xlarge", 8, 30, 128),
  type("ecs.r7.16xlarge", 8, 30, 128),
  // No types of the cloud: limits that its tables have in other combinations.
  type("ecs.emulated.v6few", 4, 10, 0, 3),
  type("ecs.emulated.v6none", 4, 10, 0, 0),
];
