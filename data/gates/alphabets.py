"""The scripts of languages, the letters of each, and common words that its nearest relatives lack.

Codes are ISO 639-1 where one exists, else ISO 639-3. Source: Unicode, Blocks.txt, for the ranges;
the languages' orthographies for the letters, with the accents of careful writing and of loans;
their grammars for the words, none of which was chosen by a corpus.
"""

# Script: the languages written in it, of those that a model may know, and its ranges of letters.
# A script with one language decides alone.
SCRIPTS = (
    ("Latin", "", "0041-024F 0250-02AF 1E00-1EFF 2C60-2C7F A720-A7FF FF21-FF5A"),
    ("Cyrillic", "", "0400-052F 1C80-1C8F A640-A69F"),
    ("Arabic", "", "0620-06FF 0750-077F 0870-08FF FB50-FDFF FE70-FEFC"),
    ("Greek", "el", "0370-03FF 1F00-1FFF"),
    ("Armenian", "hy", "0530-058F FB13-FB17"),
    ("Hebrew", "", "0590-05FF FB1D-FB4F"),
    ("Syriac", "syr", "0700-074F"),
    ("Thaana", "dv", "0780-07BF"),
    ("N'Ko", "nqo", "07C0-07FF"),
    ("Devanagari", "", "0900-097F A8E0-A8FF"),
    ("Bengali", "", "0980-09FF"),
    ("Gurmukhi", "pa", "0A00-0A7F"),
    ("Gujarati", "gu", "0A80-0AFF"),
    ("Odia", "or", "0B00-0B7F"),
    ("Tamil", "ta", "0B80-0BFF"),
    ("Telugu", "te", "0C00-0C7F"),
    ("Kannada", "kn", "0C80-0CFF"),
    ("Malayalam", "ml", "0D00-0D7F"),
    ("Sinhala", "si", "0D80-0DFF"),
    ("Thai", "th", "0E00-0E7F"),
    ("Lao", "lo", "0E80-0EFF"),
    ("Tibetan", "bo", "0F00-0FFF"),
    ("Myanmar", "my", "1000-109F A9E0-A9FF AA60-AA7F"),
    ("Georgian", "", "10A0-10FF 1C90-1CBF 2D00-2D2F"),
    ("Hangul", "ko", "1100-11FF 3130-318F A960-A97F AC00-D7FF"),
    ("Ethiopic", "am", "1200-139F 2D80-2DDF"),
    ("Cherokee", "chr", "13A0-13FF AB70-ABBF"),
    ("Inuktitut", "iu", "1400-167F 18B0-18FF"),
    ("Tagalog", "tl", "1700-171F"),
    ("Khmer", "km", "1780-17FF 19E0-19FF"),
    ("Mongolian", "mn", "1800-18AF"),
    ("Balinese", "ban", "1B00-1B7F"),
    ("Sundanese", "su", "1B80-1BBF"),
    ("Ol Chiki", "sat", "1C50-1C7F"),
    ("Tifinagh", "zgh", "2D30-2D7F"),
    ("Kana", "ja", "3041-30FF 31F0-31FF FF66-FF9F"),
    ("Bopomofo", "zh", "3100-312F"),
    ("Han", "", "2E80-2FDF 3005-3007 3400-9FFF F900-FAFF"),
    ("Yi", "ii", "A000-A4CF"),
    ("Lisu", "lis", "A4D0-A4FF"),
    ("Vai", "vai", "A500-A63F"),
    ("Javanese", "jv", "A980-A9DF"),
    ("Meetei", "mni", "ABC0-ABFF"),
    ("Gothic", "got", "10330-1034F"),
    ("Adlam", "ff", "1E900-1E95F"),
)
# Script of several languages: each with the letters it has beside those that all have; "-" for
# none. A letter that is in one list is foreign to the languages in whose lists it is not.
ALPHABETS = {
    "Latin": """
    af êëéèôöûüîïáóíúý, gsw äöüàèéòùìâêôûëẞß, an áéíóúüñç, ast áéíóúüñḥḷ, az əçğıöşü,
    bar äöüåßéàèô, bcl ñáéíóúâêîôû, br ñùêéâîôûàèç, bs čćđšž, ca àéèíïóòúüç, cbk ñáéíóú,
    ceb ñáéíóú, co àèéìïòùüç, cs áčďéěíňóřšťúůýž, cy âêîôûŵŷáéíóúẃýàèìòùẁỳäëïöüẅÿ, da æøåéáóí,
    de äöüß, diq çêğıîşûü, dsb čćěłńóŕśšźžò, egl àâäèéêëìîòôöùûü, en -, eo ĉĝĥĵŝŭ, es áéíóúüñ,
    et äöõüšž, eu ñüç, fi äöåšž, fr àâæçéèêëîïôœùûüÿ, frr äöüåēßđ, fy âêôûúéëïöüàèäí,
    ga áéíóúḃċḋḟġṁṗṡṫ, gd àèìòùáéó, gl áéíóúüñïç, gn áéíóúýãẽĩñõũỹ, gom āēīōūãẽĩõũáéíóúñç, gv ç,
    hif -, hr čćđšž, hsb čćěłńóřšžź, ht èòàéáóâêîôù, hu áéíóöőúüű, ia -, id é, ie áéíóúàèìòùâêîôû,
    ilo ñ, io -, is áðéíóúýþæö, it àèéìíòóùú, jbo -, jv éèêåñ, ku çêîşûḧẍ, kw âêîôûŷïöüàèìòù,
    la āēīōūȳăĕĭŏŭæœëáéíóú, lb äéëöüèêôâîûß, li áâäàèéêëíîïóôöòúûüù, lmo àèéìòùâêîôûöüäëï,
    lt ąčęėįšųūž, lv āčēģīķļņšūžōŗ, mg àâèéêëìîïñôòỳ, min é, ms é, mt ċġħżàèìòùé,
    mwl áâéêíóôúçñãõ, nah āēīōáéíóúñç, nap àâáèéêìíîòóôùúûëç, nds äöüßâêôåæøœ,
    nl éëïöüáíóúèêôûàäç, nn æøåéèêóòôàüä, no æøåéèêóòôàüä, oc àáâéèëêíïìîóòôúùüçñ,
    pam áéíóúâêîôûàèìòùñ, pfl äöüßàèéåôûâêîëïœæ, pl ąćęłńóśźż, pms àèéëìòóùïöüáíúñ,
    pt áâãàçéêíóôõúü, qu ñáéíóú, rm àèéìòùöüîäê, ro ăâîșțşţ, sc àèìòùçáéíóúñ, scn àèìòùâêîôûçïḍ,
    sco ȝ, sk áäčďéíĺľňóôŕšťúýž, sl čšž, so -, sq çë, sr čćđšž, su éèê, sv åäöéàüèë, sw -,
    tk äçžňöşüý, tl áéíóúâêîôûàèìòùñ, tr çğıöşüâîû, uz ʻʼ, vec àèéìíòóùúłđçñáâêîôû, vep čšžäöü,
    vi ăâđêôơưàảãáạằẳẵắặầẩẫấậèẻẽéẹềểễếệìỉĩíịòỏõóọồổỗốộờởỡớợùủũúụừửữứựỳỷỹýỵ, vls éèêëôöûüïœ,
    vo äöü, wa åâêîôûéèçñœæàùï, war ñáéíóúâêîôûàèìòù, yo áàéèẹíìóòọúùṣńǹḿ,
""",
    "Cyrillic": """
    av ӏёйщъыьэюя, az әғҝөүһҹјы, ba әөүғҙҡңҫһёйщъыьэюя, be ёійўыьэюя, bg йщъьюя, bs ђјљњћџ,
    bxr өүһёйщъыьэюя, ce ӏёйщъыьэюя, cv ӑӗҫӳёйщъыьэюя, kk әғқңөұүһіёйщъыьэюя, krc ёйщъыьэюя,
    kv іӧёйщъыьэюя, ky ңөүёйщъыьэюя, lez ӏёйщъыьэюя, mhr ӧӱҥёйщъыьэюя, mk ѓѕјљњќџ, mn өүёйщъыьэюя,
    mrj ӓӧӱӹёйщъыьэюя, myv ёйщъыьэюя, os ӕæёйщъыьэюя, ru ёйщъыьэюя, rue ґєіїёйщъыьюя,
    sah ҕҥөһүёйщъыьэюя, sr ђјљњћџ, tg ғӣқӯҳҷёйъэюя, tk җңөүәёйщъыьэюя, tt әөүҗңһёйщъыьэюя,
    tyv ңөүёйщъыьэюя, uk ґєіїйщьюя, uz ўқғҳёйъьэюя, xal әһҗңөүёйщъыьэюя,
""",
    "Arabic": """
    ar يكىً, arz يكىپچڤگ, azb پچژگکیؤۆۇيك, ckb پچژگکیڕڵۆێەڤھيك, fa پچژگکیيك, ku پچژگکیڕڵۆێەڤھ,
    lrc پچژگکیۊؤڤٱۈۆ, mzn پچژگکیيك, pnb پچژگکیٹڈڑےںھہ, ps پچژګکیېۍټډړږښڼځڅي,
    sd ٻڀٿٽٺڄڃڇڌڏڊڍڙڦڪگڳڱڻھيپچٹ, ug پچژگڭۇۆۈۋېىەكيھ, ur پچژگکیٹڈڑےںھہۂۃ,
""",
    "Hebrew": "he -, yi װױײ",
    "Devanagari": "bho -, dty -, gom ळ, hi -, mai -, mr ळ, ne -, new -, sa ळ",
    "Bengali": "as ৰৱ, bn র, bpy রৱ",
    "Georgian": "ka -, xmf ჷჸ",
    # Characters of the written vernaculars that standard Chinese does without.
    "Han": "ja -, wuu 侬覅搿伐, yue 嘅咗喺唔啲嚟佢冇嗰乜嘢攞諗瞓咁噉哋, zh -",
}
# Common words that tell a language from those it is most often taken for: pronouns, particles,
# conjunctions. A word of two of them stands with both. In the Han script each character is a word.
TELLING_WORDS = """
    af: ek nie hy sy julle hulle baie vir wees ons hierdie daar
    ar: التي الذي هذا هذه ليس لم لن أن إن ماذا لماذا أين كيف نحن إلى على هل كان سوف لقد ذلك
    arz: مش ده دي دى اللي اللى ايه إيه كده علشان عشان ليه فين احنا إحنا مفيش بتاع كمان دلوقتي ازاي
        إزاي عايز عايزة اوي أوي لسه حاجة برضه بس دول انت إنت
    ast: nun ye yá güei muncho tien facer toles tolos pola pol entá naide tamién coles ensin dir y
        con el
    az: və mən sən üçün deyil nə daha çox yox bu ilə
    ba: һәм менән был өсөн түгел кеше
    bar: ned hod wos oda mia san i a is bin dei
    bcl: asin nin gabos dai saro igwa sinda kaini
    be: што гэта яна мы вы быў як але калі толькі ўжо вельмі ёсць ды мяне ў
    bg: не да се че от за съм са тази този това какво как има няма ще беше или
    bho: बा बाटे रउआ रउवा होखे आपन खातिर सभे हमार ओकर ना कइल के में से
    bn: এবং না আমি এই
    bs: ko neko niko šta sedmica sedmice hiljada evropa muzika lahko mehko kahva hljeb gdje uvijek
        riječ vrijeme dijete lijepo ovdje prije poslije vidjeti živjeti cijeli dvije
    ca: amb els més avui això aquest aquesta és són jo meva seva perquè molt què fer aquells
    cbk: ta nuay mga kame kita maga kanda ustedes daw gat nohay hinde kun ele kosa conel ansina el y
        con una
    ce: ду цуьнан вац а хьо
    ceb: og ug dili kaayo unsa imong akong iyang kini adunay naa usa mao gikan nga niini ngano karon
        tanan matag kaniya
    ckb: لە لەگەڵ ئەوە ئەم کە بۆ هەموو مرۆڤ یان بەڵام
    co: hè chì ùn micca ognunu cù sò quellu tuttu dirittu nè pè issu issa ghjè ellu di una
    cs: že jsem není proč když který která které jsou protože ještě být více nebo jen mě jsme řekl
    da: af hvad noget nogle nogen efter mig dig sig blev blive ud meget været gøre siger uden jer op
        igen han jeg ikke
    de: und der die das ich nicht ist ein es sie wir was auf mit zu den für
    dsb: njejo som wón wóna teke kótaryž kótara pśi pśed jo swóje abo
    en: the and of to that it you he for was with his not are have this
    eo: kaj estas ĝi ŝi kiu kiun tiu tion kio sed oni esti estis ankaŭ ĉu de mi vi pli
    es: y muy hoy más hacer dijo usted pero quién está una los las con el es del yo
    et: ja ei ma see ta mis oli kui on oma
    fa: است این که را از با برای در آن من
    fi: ja ei se hän että mutta on oli minä
    fr: le les des est et un une je ne pas que dans pour il vous
    fy: it net fan yn mei foar wy hat hja fanne dy syn
    gl: unha non máis moi hai xa hoxe onte mañá miña túa súa cando quen ningunha ten algún lle lles
        xente calquera dereito o os do
    gn: upe avei opa peteĩ tekove ha'e nde che mba'e
    gsw: isch nid nöd het hät gsi dr chunnt öppis au mir uf
    he: של את לא אני זה הוא היא על עם מה יש
    hi: है और में की का को से यह नहीं हैं पर था मैं हूँ
    hr: tko netko nitko svatko tjedan tjedna tijekom vlak kruh glazba povijest tisuća sveučilište
        europa točno točka uvjet također općina opće tvrtka što sukladno gdje uvijek riječ vrijeme
        dijete lijepo ovdje prije poslije vidjeti živjeti cijeli dvije
    hsb: njeje sym wón wona hdźe tež kotryž kotraž při swoje abo štóž mjez
    ia: ille illa iste esser esseva mi vostre nos ha pro etiam multo un le e que
    id: bisa karena bahwa uang mobil kantor butuh saat ingin polisi berbeda universitas sejak apakah
        gak nggak silakan nomor kapan inggris jerman jepang
    ie: li omni quel null esset vole secun
    ilo: ti iti dagiti nga ken kadagiti ket saan nagan awan daytoy amin tunggal
    io: esas esis esar me vu quo qua ita ica lua mea tua ed omna nek kad kande ube tre li por il la
        en
    it: che non di il è una con sono ho più questo quello lei molto anche della dei gli
    jv: ora kowe iki iku kuwi sing karo wis saka lan dheweke arep ing kang
    kk: және мен бұл емес үшін адам
    ky: жана менен бул эмес үчүн адам
    la: est non et ad cum sunt quod ex
    lb: ass net ech vun hien eng fir mat och gëtt wéi hunn keng dat
    lmo: l'è gh'è minga pù inn cont anca tucc quell
    mai: अछि छथि केर सँ एहि छल हम नहि कोनो सभ अपन के मे
    mhr: мый тый тудо ден огыл лийын мом тиде
    min: nan indak jo urang pado iko adolah untuak sarato labiah satiok sabagai sagalo
    mk: не да се дека од за сум оваа овој тоа што како има нема ќе беше или
    mr: आहे आणि मध्ये ते मी नाही हे होते च्या
    ms: boleh kerana bahawa wang kereta pejabat cakap awak kat nak tak hendak esok berbeza iaitu
        universiti kawan sila pelbagai cuba mahu ubat basikal fikir isnin sahaja daripada ialah
        inggeris jepun
    nap: chillo chella cchiù nu nun ccà ogge pecché
    nds: un nich is vun up för hett ok wi dat ik de
    ne: छ र मा लाई यो हो छन् म तपाईं भएको
    nl: de het een en van ik niet is dat op met zijn voor hij ze naar ook
    nn: eg ikkje ho dei kva korleis kvifor kven noko nokon mykje vere vore gjere seier frå eit òg
        heim dykk sjå meir av meg deg seg
    no: av hva noe noen nå meg deg seg ut opp mye vært gjøre sier veldig språk uten dere takk bli
        blitt ble etter igjen han jeg ikke
    oc: lo fòrça uèi ièr aquò ieu pòdi dins aqueste tanben totes òme drech amb que es
    os: æмæ ӕмӕ нæ нӕ уый дæр дӕр ис кæд
    pam: ning ampo dapot keng kareng reng mika ing ding king at
    pl: się jest że nie czy mnie dla tylko jego który to w jak i
    pms: ël ëd ij për nen dël chiel pì l'é dla ant
    pnb: دا نوں وچ تے نال سی ایہ دے نیں
    pt: não uma mais muito já hoje ontem amanhã minha sua quando quem tenho isso você ele ela há o
        os um do
    qu: mana kay chay tukuy runa kama qan pay wasi ñuqa manam
    rm: betg mintga dretg tut cun esser quai jau nus ina ed
    ru: и что это она мы вы был как если для только уже очень есть меня
    rue: і што то вона мы вы был як але кідь про лем уже барз
    sc: sos sas pro cun issu custu totu no est su sa
    scn: lu nun cchiù nta chiddu dirittu pi avi
    sco: tae hae nae wi fae aw fowk ilka an frae yer whit o the it for
    sk: som nie prečo keď ktorý ktorá ktoré sú alebo pretože ešte byť veľmi čo viac môj mňa môže
    sl: in ki tudi kaj zelo jaz kje kdo zakaj ker vedno nisem bom vsak vse ni sem
    sq: dhe një të në është nuk që
    sr: gde uvek reč vreme dete lepo ovde pre posle videti živeti ko niko neko šta nedelja istorija
        hleb mleko čovek celo evropa hiljada muzika
    su: jeung nu dina teu ka ti anu urang ngan ieu éta kudu
    sv: och är jag inte det som att av ett har till den om hon mig dig sig blev han
    sw: kwa katika mtu watu kila hii huu hiyo sana nini yangu yako wake wao lakini kama ni ya wa la
        za vya mimi wewe yeye sisi
    tk: we hem bilen üçin däl bolan her ве хем билен үчин дәл болан хер
    tl: ng ay hindi ito siya niya at nang naman bakit saan kailangan din bawat tayo ang po
    tr: ve ben sen için değil çok ne daha yok bu ile
    tt: һәм белән бу өчен түгел кеше
    tyv: болгаш кижи азы биле чок дээш
    uk: і що це вона ми ви був як але якщо тільки вже дуже є та й мене
    ur: کا کی کے کو میں ہے اور نہیں ہیں سے نے یہ وہ پر
    uz: va men sen uchun bilan emas ham nima yo'q bu siz
    vec: xe ghe gò ga semo sto el no
    vep: om kaik ičeze kenen dai vai oma
    wa: avou nén li ki po ele esteut lu pus
    war: han hin ngan diri waray iton hiya nga mga hira
    wuu: 勿 伊 侬 呒 搿 迭 啥 阿
    yi: איז און די דער איך ניט נישט ער זי מיט אויף פון צו האט וואס
    yue: 唔 佢 嘅 咗 喺 啲 嚟 冇 咁 嘢
    zh: 不 他 她 们 們 这 這 很 吗 嗎 没 沒 是
"""
