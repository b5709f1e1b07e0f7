package agent

import (
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/services/dns"
)

func TestChoicesOfDNS(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want dns.Choices
	}{
		"default":       {nil, dns.Choices{}},
		"pods":          {[]string{"--dns-pods-insecure"}, dns.Choices{PodsByForm: true}},
		"spelling":      {[]string{"--dns-mixed-case=false"}, dns.Choices{LowerCase: true}},
		"as by default": {[]string{"--dns-pods-insecure=false", "--dns-mixed-case"}, dns.Choices{}},
	} {
		t.Run(name, func(t *testing.T) {
			var c namesConfig
			var got dns.Choices
			app := &cli.App{Flags: c.flags(), Action: func(*cli.Context) error { got = c.choices(); return nil }}
			if err := app.Run(append([]string{"agent"}, tt.args...)); err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}
