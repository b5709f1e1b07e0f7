package policy

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy/law"
	"tapestry.dev/tapestry/roll"
)

// TestUnknownNamespace: a namespace that is not known yet may have any labels besides its name. So what selects it must
// do so whatever they are.
func TestUnknownNamespace(t *testing.T) {
	for _, c := range []struct {
		selector              law.Selector
		unknown, known, named Verdict // with no label untrusted, and with one
	}{
		{law.Selector{}, Permit, Permit, Permit},
		{law.Selector{where("untrusted", law.DoesNotExist)}, Deny, Permit, Deny},
		{law.Selector{where("untrusted", law.NotIn, "yes")}, Deny, Permit, Deny},
		{law.Selector{where("untrusted", law.Exists)}, Deny, Deny, Permit},
		{law.Selector{where(law.NameLabel, law.In, "b")}, Permit, Permit, Permit},
		{law.Selector{where(law.NameLabel, law.In, "c")}, Deny, Deny, Deny},
		{law.Selector{where(law.NameLabel, law.In, "b"), where("untrusted", law.DoesNotExist)}, Deny, Permit, Deny},
	} {
		config := Config{
			Policies: []*Policy{one(law.Rule{AnyPort: true, Parties: []law.Party{{Namespaces: &c.selector}}})},
			Own:      []*Pod{own("a", "own")}, Others: roll.Of(elsewhere("b", 1)),
		}
		var compiler Compiler
		for _, step := range []struct {
			namespaces []*Namespace
			want       Verdict
		}{
			{nil, c.unknown}, {[]*Namespace{{"b", nil}}, c.known}, {[]*Namespace{{"b", law.Labels{label("untrusted", "yes")}}}, c.named}, {[]*Namespace{{"z", nil}}, c.unknown},
		} {
			config.Namespaces = step.namespaces
			f := Flow{Src: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Toward: End{Kind: OwnPod, Name: "a/own"}}
			if got := compiler.Compile(config).Judge(&f); got.Verdict != step.want {
				t.Errorf("%v of %v: %+v, want %d", c.selector, step.namespaces, got, step.want)
			}
		}
	}
}
