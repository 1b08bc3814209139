"""The words of the demo's expense notes: names, what was bought, and how people write it down.

Merchants are made of real-looking words, because the task is to read a note and not to spell noise. What was bought
decides the category, never the merchant: a surname firm sells anything, and hotels also serve dinner.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split("|"))


SURNAMES = _words(
    """
    Abbott Adeyemi Almeida Anand Andersson Aoki Archer Banerjee Barreto Becker Bennett Bergström Bianchi Björk
    Blackwood Brandt Calloway Cardoso Carver Castillo Chandra Chen Choudhury Conti D'Angelo D'Souza Dawson
    Delacroix Desai Dubois Durand Eklund Ellison Engström Fairbanks Fernandes Ferrari Fischer Fitzgerald
    Fletcher Fontaine Fujimoto Gallagher García Garrison Gomes González Gupta Haddad Hargreaves Hashimoto
    Hedlund Hoffmann Holloway Hughes Iyer Jansen Johansson Kapoor Keller Kim Kobayashi Kowalski Krüger Kulkarni
    Lambert Langley Laurent Lefèvre Lindqvist Lombardi Machado Maier Marchetti Martínez Matsuda McAllister
    McCarthy Menon Meyer Monteiro Moreau Moretti Müller Nair Nakamura Novak Núñez O'Brien O'Connor O'Leary
    O'Sullivan Okafor Okonkwo Oliveira Osei Pacheco Palmer Patel Pereira Peterson Petrov Pinto Rahman Ramírez
    Reddy Ribeiro Ricci Richter Rossi Rousseau Santoro Schäfer Schmidt Schneider Sharma Silva Simmons Singh
    Söderberg Steiner Suzuki Tanaka Thatcher Thompson Tremblay Vasquez Verma Villanueva Vogel Wagner Walsh Weber
    Whitaker Winslow Yamamoto Yılmaz Zhang Ziegler Zimmermann
    """
)

WORDS = _words(
    """
    Acorn Alder Almond Amber Anchor Apple Arrow Ash Aspen Aurora Autumn Badger Bamboo Banyan Basil Beacon Birch
    Blossom Boulder Bramble Brass Breeze Bridge Bright Cactus Canyon Cardinal Castle Cedar Chestnut Cinnamon
    Citrus Clover Cobalt Comet Compass Copper Coral Cosmos Cotton Cove Crane Crescent Crimson Crow Crystal
    Cypress Dahlia Daisy Delta Dove Dragon Dune Eagle Echo Elm Ember Emerald Falcon Feather Fern Fig Finch Flint
    Forest Fountain Fox Garden Ginger Glacier Golden Granite Grove Harbour Harvest Hawthorn Hazel Heather Heron
    Hickory Honey Horizon Indigo Iron Island Ivory Ivy Jade Jasmine Juniper Kestrel Lagoon Lantern Lark Laurel
    Lavender Lemon Lighthouse Lily Linden Lotus Lunar Magnolia Mango Maple Marble Meadow Mercury Mint Mirror
    Mosaic Moss Mountain Nectar Nettle Nimbus North Nutmeg Oak Ocean Olive Onyx Opal Orchard Orchid Orion Osprey
    Otter Owl Palm Panda Pearl Pebble Pelican Pepper Phoenix Pine Pioneer Planet Plum Polar Poplar Poppy Prairie
    Quartz Quill Rabbit Raven Reed River Robin Rocket Rose Rowan Ruby Saffron Sage Sapphire Scarlet Shadow
    Silver Sparrow Spruce Star Stone Summit Sunrise Swan Sycamore Tamarind Thistle Thunder Tiger Topaz Tulip
    Turquoise Valley Velvet Violet Walnut Willow Winter Wren Zephyr
    """
)

PLACES = _words(
    """
    Adriatico Alameda Almería Altstadt Amalfi Aragón Avalon Bayswater Beaumont Belgravia Bellevue Belvédère
    Bergamo Bordeaux Bosphorus Bretagne Brighton Capri Carmel Castellana Chelsea Como Copacabana Córdoba
    Cornwall Coventry Devon Dresden Étoile Florence Galway Genève Granada Hampton Ipanema Jaipur Kensington
    Kerala Kyoto Lausanne Lisboa Lucca Lugano Lyon Madrigal Malmö Marseille Milano Monterey Montmartre Montréal
    Mysore Napoli Normandie Odéon Osaka Oxford Paraná Piccadilly Porto Provence Ravenna Rialto Richmond Salzburg
    Santorini Sapporo Savoy Sevilla Siena Sorrento Toledo Toscana Trieste Uppsala València Verona Västerås
    Windsor Zürich
    """
)

# {s} surname, {w} word, {p} place, {n} a number. Every pattern holds at least one of s, w, p: the words that are split.
ANY_BUSINESS = _phrases(
    """
    {s} & Sons|{s} & {s}|{s} Brothers|{s} Ltd|{w} Trading|{w} & {w}|{s} GmbH|{w} Group|{p} Services|
    The {w} Company|{s} and Daughters|{w} {n}|{p} Partners|{s} Holdings
    """
)
MERCHANTS = {
    "meals": _phrases(
        """
        Café {p}|{w} Bistro|{s}'s Diner|The {w} {w}|Trattoria {s}|{w} & {w} Kitchen|Bar {n} {p}|{w} Noodle Bar|
        Brasserie {p}|{s}'s Bakery|{w} Coffee Roasters|Pizzeria {s}|The {w} Spoon|Osteria {p}|{w} Grill|
        Taverna {p}|{p} Tea House|Hotel {p}|The {w} Inn|Chez {s}|{w} Street Food
        """
    ),
    "lodging": _phrases(
        """
        Hotel {p}|{w} Inn|The {w} Hotel|Pension {s}|{p} Suites|{w} Lodge|Hostel {n} {p}|{p} Grand Hotel|
        Hôtel {p}|{w} & {w} Guesthouse|{s} House|{w} Residences|Villa {p}|{p} Palace|The {p} Arms|{w} {w} Resort
        """
    ),
    "travel": _phrases(
        """
        {w} Air|{w} Cabs|{s} Car Hire|{p} Rail|{w} Airways|Taxi {s}|{p} Ferries|{w} Coaches|{p} Airlines|
        {w} Rides|{s} Chauffeurs|{p} Metro|{w} Mobility|{w}Jet
        """
    ),
    "office": _phrases(
        """
        {s} Stationers|{w} Office Supply|Papeterie {s}|{w} Paper Co|{s} & {s} Furniture|{w} Desk|{p} Print Shop|
        {w} Electronics|{w} Depot {n}|{s} Hardware|Paper {w}|{w}Mart
        """
    ),
    "software": _phrases(
        """
        {w} Labs|{w} Systems|{w} Analytics|{w}Soft|{w} Cloud|{w}{n}|{w} Data|{s} Software|{w} AI|{w} Security|
        {w}Works|Blue {w}|{w} & {w} Digital|Studio {w}
        """
    ),
    "training": _phrases(
        """
        {w} Academy|{p} Institute|{s} School|{w} Learning|{s} Coaching|{p} Business School|{w} Seminars|
        {s} & {s} Education|{w} Campus|The {w} Workshop|Collège {p}|{p} College
        """
    ),
    "postage": _phrases(
        """
        {w} Couriers|{w} Express|{s} Logistics|{p} Post|{w} Parcel|{s} Freight|{w} & {w} Shipping|{w} Dispatch|
        {p} Mail Centre|{w} Cargo {n}
        """
    ),
    "telecom": _phrases(
        """
        {w} Mobile|{w} Telecom|{p} Telecom|{w}Tel|{w} Wireless|{w} Broadband|{s} Communications|{w} Connect|
        {p} Mobile|{w} Networks
        """
    ),
}
CATEGORIES = tuple(MERCHANTS)

# What was bought, as a noun phrase that follows "for". The words alone must decide the category.
ITEMS = {
    "meals": _phrases(
        """
        lunch|team lunch|client dinner|breakfast|coffee and cake|dinner for two|sandwiches|working lunch|pizza|
        late dinner|coffee with a customer|lunch with the auditors|business breakfast|drinks and snacks|
        a three-course meal|brunch|catering for the meeting|soup and salad|dinner after the fair|
        tea and biscuits|noodles and a beer|lunch for six|takeaway burgers|a farewell dinner|
        coffees for the team|sushi|breakfast pastries|a buffet lunch
        """
    ),
    "lodging": _phrases(
        """
        two nights|a hotel room|one night|a double room|three nights in a single room|an overnight stay|
        room for the conference week|a week in a guest room|one night, late check-in|accommodation|
        room, four nights|hotel stay|a single room|bed for one night|five nights' accommodation|a twin room|
        hotel, two nights|a suite for one night|lodging during the fair|room charge|overnight accommodation|
        an extra night|a studio apartment, six nights|guesthouse room
        """
    ),
    "travel": _phrases(
        """
        taxi to the airport|a return flight|train tickets|airport parking|a rental car|bus fare|ferry crossing|
        a flight to the client|taxi home|fuel for the van|toll charges|metro tickets|a train ride|
        cab from the station|one-way flight|car hire, three days|petrol|parking|a day pass for the tram|
        shuttle to the hotel|train seat upgrade|extra baggage on the flight|taxi fare|bicycle hire|
        a coach ticket|airport transfer
        """
    ),
    "office": _phrases(
        """
        printer paper|two desk lamps|pens and notebooks|an office chair|toner|a whiteboard|folders|
        staples and tape|a standing desk|printer cartridges|a keyboard|a filing cabinet|three monitors|
        a desk organiser|sticky notes|a webcam|whiteboard markers|a paper shredder|binders and labels|
        a laptop stand|a mouse and a keyboard|ink|four office chairs|a box of pencils|desk supplies|
        a label printer
        """
    ),
    "software": _phrases(
        """
        annual licence|software subscription|cloud hosting|a design app|five user licences|a database plan|
        antivirus renewal|cloud storage|monthly app subscription|web hosting|a code editor licence|
        server hosting|accounting software|a password manager|backup software|project management app|
        an API plan|licence renewal|CRM subscription|analytics software|video editing software|
        a software upgrade|domain and web hosting|spam filter app
        """
    ),
    "training": _phrases(
        """
        a language course|conference ticket|a two-day workshop|safety training|an online course|exam fee|
        a seminar on tax law|first aid training|a webinar|leadership training|course fees|a certification exam|
        a sales workshop|Spanish lessons|training day|evening classes|an Excel course|a negotiation seminar|
        a coding bootcamp|workshop fee|tuition|a public speaking course|conference registration|refresher course
        """
    ),
    "postage": _phrases(
        """
        postage|a parcel to the client|courier delivery|stamps|express shipping|registered letter|
        overnight courier|two parcels|shipping of samples|a book of stamps|freight of one pallet|letter postage|
        same-day courier|parcel insurance and shipping|customs parcel fee|mailing of contracts|
        international shipping|return shipping|bulk mailing|courier pickup|sending documents by courier|
        a packet by airmail
        """
    ),
    "telecom": _phrases(
        """
        mobile phone bill|roaming data|a SIM card|phone calls|monthly phone plan|internet access|a data bundle|
        office broadband|phone top-up|international calls|Wi-Fi pass|landline rental|mobile contract|
        prepaid phone credit|broadband bill|a phone line|extra mobile data|conference call charges|
        two SIM cards|fibre internet|roaming charges|text message bundle
        """
    ),
}

# {m} merchant, {a} amount, {d} date, {item} what was bought, {r} a receipt number that is not asked for.
PHRASINGS = tuple(
    """
Paid {a} to {m} on {d} for {item}.
{item} from {m}, {a}, {d}.
On {d} I spent {a} at {m} on {item}.
{d}: {item}, {m}, {a}.
{m} charged us {a} for {item} on {d}.
{item}, {a}, paid to {m} on {d}.
Please reimburse {a} for {item} from {m}, dated {d}.
Receipt {r}: {m}, {item}, {a}, {d}.
I bought {item} from {m} on {d} for {a}.
{m} | {d} | {item} | {a}
{a} - {item} - {m} - {d}
Expense for {d}: {a} at {m} for {item}.
The bill from {m} for {item} came to {a} on {d}.
Invoice from {m} dated {d}: {item}, {a}.
Company card, {d}: {m}, {a}. It was for {item}.
For {item} we paid {m} the sum of {a} on {d}.
{m}, {d}. {item}. Total {a}.
Spent {a} on {item}; merchant {m}; date {d}.
{item} on {d}, {m}, total {a}.
Can you refund me {a}? It was {item} from {m} on {d}.
{d} / {m} / {a} / {item}
My claim: {item}, {a}, bought from {m} on {d}.
{m} invoiced {a} on {d} for {item}.
Cash payment of {a} to {m} for {item}, {d}.
Date: {d}. Merchant: {m}. Amount: {a}. For: {item}.
Used my own card at {m} on {d}: {a} for {item}.
Total of {a} for {item}, see the receipt of {m} from {d}.
{item} cost {a} at {m} on {d}.
It was {d} when I paid {a} at {m} for {item}.
{a} went to {m} for {item} on {d}.
Receipt attached: {item}, {m}, {d}, {a}.
{m} took {a} off my card on {d}. Reason: {item}.
Reimbursement request of {d}: {a}, {m}, {item}.
Amount {a}, date {d}, paid to {m}, purpose {item}.
We owe {a} to {m} for {item}, invoice of {d}.
Business expense: {item} ({m}, {d}), {a}.
{d}, {m}: {a} for {item}.
On {d}, {m} billed {a} for {item}.
{item}: {a}. Vendor {m}. Date {d}.
Settled the invoice of {m} for {item} on {d}, {a} in all.
Order {r} with {m} on {d}: {item} for {a}.
Hi, here is {item} from {m}: {a}, paid on {d}.
Bought on {d} from {m}: {item}. Price {a}.
Please book {a} for {m}, {d}, {item}.
I paid for {item} myself: {a}, {m}, {d}.
{m} - {item} - {d} - {a}
Expense note. Who: {m}. What: {item}. When: {d}. How much: {a}.
Card payment {d}, {a}, {m}, for {item}.
Had to pay {a} for {item} on {d}, the receipt is from {m}.
With {m} on {d}: {item}, {a} including tax.
{a} including VAT for {item} from {m}, {d}.
From my wallet on {d}: {a} to {m} for {item}.
Outlay of {a} on {d} for {item}. Supplier: {m}.
{m} sent a bill of {a} for {item}, dated {d}.
New expense: {m}, {a}, {item}, {d}.
{item} was {a}. I paid {m} on {d}.
The receipt from {m} says {d} and {a}; it was for {item}.
{d}. Paid {m}. {item}. {a}.
To be refunded: {a}, {item}, {m}, {d}.
Put {a} on the company card on {d} for {item} from {m}.
{m} got {a} from me on {d} for {item}.
As agreed, {item} from {m}, {d}, for {a}.
Claiming {a} for {item}. Paid on {d}. Shop: {m}.
Transfer of {a} to {m} on {d}, reference {item}.
Purchase at {m}, {d}, {item}, {a}, receipt {r}.
{item} ({a}) from {m} on {d}.
For the records: {m}, {item}, {a}, paid {d}.
Our team used {m} for {item} on {d}; it cost {a}.
{a} at {m} on {d}. That was {item}.
Debit of {d}: {a}, payee {m}, {item}.
Please pay me back for {item}: {a} at {m}, {d}.
What I spent on {d}: {a} for {item}, paid to {m}.
{m} receipt no. {r} of {d}, {item}, {a}.
I was charged {a} by {m} for {item} on {d}.
Quick note: {d}, {item}, {a}, from {m}.
Bill dated {d}: {a} for {item}, issued by {m}.
{item}; {m}; {a}; {d}
Advance paid on {d} to {m}, {a}, for {item}.
Payment to {m}: {a}. Date: {d}. Purpose: {item}.
Add this to my expenses: {item}, {d}, {m}, {a}.
The client visit on {d}: {item} from {m} for {a}.
Just paid {m} for {item}. {a}, {d}.
{a} spent at {m} ({item}) on {d}.
Statement line: {d}, {m}, {a}, for {item}.
Today, {d}, {m} received {a} for {item}.
Expense {r}: {a} for {item}, {m}, on {d}.
Here is the slip from {m} for {item}, {d}. It says {a}.
I need {a} back. {m}, {d}, {item}.
Costs on {d}: {item} by {m}, {a}.
Corporate card was used for {item} at {m}, {a}, {d}.
Payable to {m} for {item} of {d}: {a}.
Project costs, {item}, supplied by {m} on {d} at {a}.
""".strip().split("\n")
)
