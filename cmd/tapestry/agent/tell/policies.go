package tell

import (
	"context"
	"errors"
	"fmt"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/explain"
)

// stagedRows returns what staged policies find.
func (t *Teller) stagedRows(context.Context) (rows []localapi.StagedFlow, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	tables, findings := t.o.Follower.Node().Policies()
	for _, f := range findings.List(tables) {
		row := localapi.StagedFlow{
			From: f.From.Name, To: f.Toward.Name, Src: f.Src.Netip(), Dst: f.Dst.Netip(), Protocol: explain.Protocol(f.Proto), Port: f.Port,
			Would: "denied", Begun: f.Begun, Standing: f.Standing, First: f.First, Last: f.Last,
		}
		if f.Would == policy.Permit {
			row.Would = "permitted"
		}
		if f.Rule != 0 {
			row.By = f.By.String() + " " + f.Rule.String()
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// policyRows returns the policies by which the node judges.
func (t *Teller) policyRows(context.Context) (rows []localapi.Policy, _ error) {
	if !t.o.Follower.HasStarted() {
		return nil, nil
	}
	problems := map[string]int{}
	for _, p := range t.problems() {
		problems[p.Object.String()]++
	}
	tables, _ := t.o.Follower.Node().Policies()
	for one, state := range tables.Policies() {
		row := localapi.Policy{
			Policy: one.String(), Mode: "enforce", Pods: state.Table.Selected(one), Generation: tables.Generation,
			Since: state.Since, Permitted: state.Permitted(), Denied: state.Denied(), Problems: problems[one.String()],
		}
		if one.Staged() {
			row.Mode = "audit"
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// explain answers whether one end may reach another: FROM, TO:PORT/PROTOCOL.
func (t *Teller) explain(_ context.Context, args []string) ([]localapi.Explanation, error) {
	if len(args) != 2 {
		return nil, fmt.Errorf("%d arguments: expected POD and POD:PORT", len(args))
	}
	if !t.o.Follower.HasStarted() {
		return nil, errors.New("the agent does not know the cluster yet")
	}
	q, err := explain.Parse(args[0], args[1])
	if err != nil {
		return nil, err
	}
	n := t.o.Follower.Node()
	tables, _ := n.Policies()
	a, err := (&explain.Node{Tables: tables, Config: &n.Config().Policy, At: n.EndAt}).Ask(q)
	if err != nil {
		return nil, err
	}
	e := localapi.Explanation{Verdict: explain.Verdict(a.Now.Verdict), From: localapi.Explained{End: args[0], Addr: a.Src}, To: localapi.Explained{End: args[1], Addr: a.Dst}}
	e.From.Now, e.To.Now = judged(tables.InForce, &a.Now.Egress, true, &q), judged(tables.InForce, &a.Now.Ingress, false, &q)
	pods := &a.Now
	if a.Staged != nil {
		from, to := judged(tables.Staged, &a.Staged.Egress, true, &q), judged(tables.Staged, &a.Staged.Ingress, false, &q)
		e.From.Staged, e.To.Staged, e.Would, pods = &from, &to, explain.Verdict(a.Staged.Verdict), a.Staged
	}
	e.From.Pod, e.From.Node = named(pods.Egress.Pod)
	e.To.Pod, e.To.Node = named(pods.Ingress.Pod)
	return []localapi.Explanation{e}, nil
}

func named(p *policy.Pod) (name, node string) {
	if p == nil {
		return "", ""
	}
	return p.Namespace + "/" + p.Name, p.Node
}

// judged returns how a Table, nil for none, judges a direction.
func judged(t *policy.Table, d *policy.Direction, egress bool, q *explain.Question) localapi.Judged {
	j := localapi.Judged{Verdict: explain.Verdict(d.Verdict)}
	if t != nil {
		j.Rule = t.Describe(d.Rule)
	}
	for _, one := range d.Policies {
		j.Policies = append(j.Policies, one.String())
	}
	j.Change = explain.Change(d, egress, q, j.Rule)
	return j
}
