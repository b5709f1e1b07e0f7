package agent

import (
	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/services/dns"
)

// namesConfig holds the flags for how cluster DNS answers and asks.
type namesConfig struct {
	podsInsecure, mixedCase bool
}

func (c *namesConfig) flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dns-pods-insecure", Usage: "answer for the pod name of every address, whether there is such a pod or not, as CoreDNS's \"pods insecure\"", Destination: &c.podsInsecure},
		&cli.BoolFlag{Name: "dns-mixed-case", Usage: "ask upstreams for names in a random spelling, which a forger has to guess", Value: true, Destination: &c.mixedCase},
	}
}

func (c *namesConfig) choices() dns.Choices {
	return dns.Choices{PodsByForm: c.podsInsecure, LowerCase: !c.mixedCase}
}
