package node

import (
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/observe"
)

// recorder has the node's parts write into the flow log. The zero value records nothing.
type recorder struct {
	log  *flowlog.Log
	path *observe.Path
}

func (n *Node) newRecorder() recorder {
	if n.held.FlowLog == nil {
		return recorder{}
	}
	return recorder{n.held.FlowLog, observe.New(n.held.FlowLog, n.held.Flows.Stats().Capacity)}
}

// observer is netstack.Options.Observer.
func (r *recorder) observer() netstack.Observer {
	if r.path == nil {
		return nil
	}
	return r.path
}

func (r *recorder) counters() counter.List {
	if r.log == nil {
		return nil
	}
	s := r.log.Stats()
	return counter.List{
		counter.One(counter.Total, "tapestry_flow_records_total", "Events of flows that were recorded; the node keeps the last of them.", s.Written),
		counter.By(counter.Total, "tapestry_flow_records_missed_total",
			"Events of flows that were not recorded, as two writers met (collided) or one sender's packets were refused or dropped too often (spared).",
			"why", map[string]uint64{"collided": s.Missed, "spared": r.path.Spared()}),
	}
}

// Rule says which rule of a policy decided, by the number that a record of the flow log has; "" if there is no such rule
// any more.
func (n *Node) Rule(rule uint64) string {
	if t := n.policy.Load(); t != nil && rule != 0 {
		return t.Describe(rule)
	}
	return ""
}
