package law

import "fmt"

// ID is what a rule is known by outside: the serial number of its policy, whether that is one of the cluster, the
// direction, and its index there from 1 on. With the index 0 it is the policy itself. No rule has the ID 0, since
// serial numbers begin with 1.
type ID uint64

const (
	serialBits = 32
	ingressBit = 1 << 31
	clusterBit = 1 << 30
)

// IDOf returns the ID of a rule; of the policy itself for the rule -1.
func IDOf(serial uint32, cluster, egress bool, rule int) ID {
	id := ID(serial)<<serialBits | ID(rule+1)
	if !egress {
		id |= ingressBit
	}
	if cluster {
		id |= clusterBit
	}
	return id
}

// Serial returns the serial number of the rule's policy.
func (id ID) Serial() uint32 { return uint32(id >> serialBits) }

// Policy returns the ID that all rules of one policy have in common. It is none that a rule has.
func (id ID) Policy() ID { return id&^(1<<serialBits-1) | id&clusterBit }

// Cluster reports whether it is a policy of the cluster.
func (id ID) Cluster() bool { return id&clusterBit != 0 }

// String says which rule of its policy it is, as "ingress[0]".
func (id ID) String() string {
	direction := "egress"
	if id&ingressBit != 0 {
		direction = "ingress"
	}
	if i := uint32(id) &^ (ingressBit | clusterBit); i > 0 {
		return fmt.Sprintf("%s[%d]", direction, i-1)
	}
	return direction
}
