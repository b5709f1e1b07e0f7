package policy

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
)

// TestUnknownNamespace: a namespace that is not known yet may have any labels besides its name. So what selects it must
// do so whatever they are.
func TestUnknownNamespace(t *testing.T) {
	for _, c := range []struct {
		selector              Selector
		unknown, known, named Verdict // with no label untrusted, and with one
	}{
		{Selector{}, Permit, Permit, Permit},
		{Selector{{"untrusted", DoesNotExist, nil}}, Deny, Permit, Deny},
		{Selector{{"untrusted", NotIn, []string{"yes"}}}, Deny, Permit, Deny},
		{Selector{{"untrusted", Exists, nil}}, Deny, Deny, Permit},
		{Selector{{nameLabel, In, []string{"b"}}}, Permit, Permit, Permit},
		{Selector{{nameLabel, In, []string{"c"}}}, Deny, Deny, Deny},
		{Selector{{nameLabel, In, []string{"b"}}, {"untrusted", DoesNotExist, nil}}, Deny, Permit, Deny},
	} {
		config := Config{
			Policies: []*Policy{one(Rule{AnyPort: true, Parties: []Party{{Namespaces: &c.selector}}})},
			Own:      []*Pod{own("a", "own")}, Others: roll.Of(elsewhere("b", 1)),
		}
		var compiler Compiler
		for _, step := range []struct {
			namespaces []*Namespace
			want       Verdict
		}{
			{nil, c.unknown}, {[]*Namespace{{"b", nil}}, c.known}, {[]*Namespace{{"b", Labels{{"untrusted", "yes"}}}}, c.named}, {[]*Namespace{{"z", nil}}, c.unknown},
		} {
			config.Namespaces = step.namespaces
			f := Flow{Src: at("10.1.0.1"), Proto: packet.TCP, Port: 80, Toward: End{Kind: OwnPod, Name: "a/own"}}
			if got := compiler.Compile(config).Judge(&f); got.Verdict != step.want {
				t.Errorf("%v of %v: %+v, want %d", c.selector, step.namespaces, got, step.want)
			}
		}
	}
}
